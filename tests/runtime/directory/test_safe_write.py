"""What the user has is replaced by complete files only, and a model by nothing."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from divprune.runtime.directory.safe_write import check_place, write_file
from divprune.runtime.errors import OptionError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def model(folder: Path, kind: str) -> Path:
    folder.mkdir()
    if kind == "engine":
        (folder / "manifest.json").write_text("{}")
        (folder / "llm").mkdir()
    else:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize("kind", ["engine", "checkpoint"])
@pytest.mark.parametrize(
    "name", ["manifest.json", "config.json", "new.json", "llm/a.json", "../m/x"]
)
def test_nothing_is_written_into_a_model(tmp_path, kind, name):
    folder = model(tmp_path / "m", kind)
    with pytest.raises(OptionError, match="directory of a model"):
        check_place(folder / name, "--output")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(OptionError, match="directory of a model"):
        check_place(tmp_path / "link" / name.removeprefix("../m/"), "--output")


def test_beside_a_model_is_a_place(tmp_path):
    model(tmp_path / "m", "engine")
    check_place(tmp_path / "report.json", "--output")
    (tmp_path / "config.json").write_text("{}")  # of whatever else is there
    check_place(tmp_path / "report.json", "--output")


@pytest.mark.parametrize("name", ["missing/a.json", ".", "a\0b", "x" * 300, "file/a.json"])
def test_a_place_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"--output .*(cannot be written|is a directory)"):
        check_place(tmp_path / name, "--output")
    with pytest.raises(OptionError, match="--output"):
        write_file(tmp_path / name, b"", "--output")


def test_a_file_is_replaced_and_keeps_its_mode(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    file.chmod(0o600)
    write_file(file, b"new", "--output")
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert names(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "a.txt").symlink_to("target.txt")
    write_file(tmp_path / "a.txt", b"new", "--output")
    assert (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "target.txt").read_bytes() == b"new"


@pytest.mark.parametrize("there", [None, b"old"])
def test_what_does_not_fit_leaves_the_old_file_or_none(tmp_path, there):
    file = tmp_path / "a.txt"
    if there is not None:
        file.write_bytes(there)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OptionError, match="cannot be written"):
            write_file(file, bytes(5000), "--output")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ([] if there is None else ["a.txt"])
    assert there is None or file.read_bytes() == there


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no such device")
def test_a_device_is_written_to(tmp_path):
    write_file(Path("/dev/null"), b"anything", "--output")
    assert not Path("/dev/null").is_file()
