"""Hashes are right, and remembered only for as long as the file looks untouched."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from divprune.runtime.directory import file_hash
from divprune.runtime.directory.file_hash import HashCache, cache_directory, hash_file

HOUR_AGO = 1_700_000_000_000_000_000


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file that is old enough to be remembered."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights")
    os.utime(path, ns=(HOUR_AGO, HOUR_AGO))
    return path


def remember(folder: Path, path: Path) -> None:
    cache = HashCache(folder)
    cache.sha256(path)
    cache.save()


def change_unseen(path: Path, content: bytes) -> None:
    """Other bytes, same size, inode and modification time."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_333_333])
def test_hash_of_a_file_is_that_of_its_bytes_and_chunks_add_up(tmp_path: Path, size: int):
    content = os.urandom(size)
    path = tmp_path / "data"
    path.write_bytes(content)
    chunks: list[int] = []
    assert hash_file(path, chunks.append) == sha256(content)
    assert sum(chunks) == size


def test_memory_does_not_grow_with_the_file(tmp_path: Path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    script = (
        "import sys; from pathlib import Path\n"
        "from divprune.runtime.directory.file_hash import hash_file\n"
        "from divprune.runtime.memory import peak_rss\n"
        "before = peak_rss(); hash_file(Path(sys.argv[1])); print(peak_rss() - before)"
    )
    grown = subprocess.check_output([sys.executable, "-c", script, path], text=True)
    assert int(grown) < 16 << 20


def test_untouched_file_is_not_read_again_by_another_process(folder: Path, weights: Path):
    remember(folder, weights)
    change_unseen(weights, b"WEIGHTS")
    assert HashCache(folder).sha256(weights) == sha256(b"weights")


def test_always_reads_a_file_that_looks_untouched(folder: Path, weights: Path):
    remember(folder, weights)
    change_unseen(weights, b"WEIGHTS")
    assert HashCache(folder).sha256(weights, always=True) == sha256(b"WEIGHTS")


@pytest.mark.parametrize("touched", ["mtime", "size", "inode"])
def test_file_that_was_touched_is_read_again(folder: Path, weights: Path, touched: str):
    remember(folder, weights)
    if touched == "mtime":
        change_unseen(weights, b"WEIGHTS")
        os.utime(weights, ns=(HOUR_AGO, HOUR_AGO + 1))
    elif touched == "size":
        weights.write_bytes(b"WEIGHTS and more")
        os.utime(weights, ns=(HOUR_AGO, HOUR_AGO))
    else:
        other = weights.with_name("other")
        other.write_bytes(b"WEIGHTS")
        os.utime(other, ns=(HOUR_AGO, HOUR_AGO))
        other.replace(weights)
    assert HashCache(folder).sha256(weights) == sha256(weights.read_bytes())


def test_file_written_just_now_is_not_remembered(folder: Path, weights: Path):
    weights.write_bytes(b"weights")
    remember(folder, weights)
    change_unseen(weights, b"WEIGHTS")
    assert HashCache(folder).sha256(weights) == sha256(b"WEIGHTS")


def test_link_to_another_file_is_noticed(folder: Path, weights: Path, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(weights)
    remember(folder, link)
    other = tmp_path / "other"
    other.write_bytes(b"WEIGHTS")
    link.unlink()
    link.symlink_to(other)
    assert HashCache(folder).sha256(link) == sha256(b"WEIGHTS")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "files": []}',
        b'{"version": 1, "files": {"PATH": {}}}',
        b'{"version": 1, "files": {"PATH": "weights"}}',
        b'{"version": 1, "files": {"PATH": {"size": 7, "mtime_ns": 0, "inode": 0, "sha256": 1}}}',
        b"[" * 100_000,
    ],
)
def test_damaged_cache_is_reported_and_written_anew(
    folder: Path, weights: Path, caplog: pytest.LogCaptureFixture, content: bytes
):
    folder.mkdir()
    cache_file = folder / "file-hashes.json"
    cache_file.write_bytes(content.replace(b"PATH", os.fsencode(weights)))
    cache = HashCache(folder)
    assert "damaged hash cache" in caplog.text
    assert cache.sha256(weights) == sha256(b"weights")
    cache.save()
    entries = json.loads(cache_file.read_bytes())["files"]
    assert entries[str(weights)]["sha256"] == sha256(b"weights")


def test_cache_of_another_version_is_not_used(folder: Path, weights: Path):
    remember(folder, weights)
    cache_file = folder / "file-hashes.json"
    content = json.loads(cache_file.read_bytes())
    cache_file.write_text(json.dumps({**content, "version": 2}))
    change_unseen(weights, b"WEIGHTS")
    assert HashCache(folder).sha256(weights) == sha256(b"WEIGHTS")


def test_cache_that_cannot_be_written_is_reported_and_costs_only_time(
    tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture
):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    cache = HashCache(blocked / "cache")
    assert cache.sha256(weights) == sha256(b"weights")
    cache.save()
    assert "cannot remember file hashes" in caplog.text


def test_cache_that_is_no_regular_file_is_not_opened(folder: Path, weights: Path):
    folder.mkdir()
    os.mkfifo(folder / "file-hashes.json")  # reading it would wait forever
    assert HashCache(folder).sha256(weights) == sha256(b"weights")


def test_processes_add_to_what_others_wrote_meanwhile(folder: Path, weights: Path):
    second = weights.with_name("second.bin")
    second.write_bytes(b"second")
    os.utime(second, ns=(HOUR_AGO, HOUR_AGO))
    one, other = HashCache(folder), HashCache(folder)
    one.sha256(weights)
    other.sha256(second)
    one.save()
    other.save()
    known = json.loads((folder / "file-hashes.json").read_bytes())["files"]
    assert set(known) == {str(weights), str(second)}
    assert [path.name for path in folder.iterdir()] == ["file-hashes.json"]


def test_oldest_entries_go_first_when_there_are_too_many(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file_hash, "_MAX_ENTRIES", 2)
    for name in ("first", "second", "third"):
        path = tmp_path / name
        path.write_text(name)
        os.utime(path, ns=(HOUR_AGO, HOUR_AGO))
        remember(folder, path)
    known = json.loads((folder / "file-hashes.json").read_bytes())["files"]
    assert [Path(path).name for path in known] == ["second", "third"]


def test_place_of_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DIVPRUNE_CACHE_DIR", raising=False)
    assert cache_directory() == Path("/home/someone/.cache/divprune")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == Path("/home/someone/.cache/divprune")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    assert cache_directory() == Path("/var/cache/someone/divprune")
    monkeypatch.setenv("DIVPRUNE_CACHE_DIR", "/data/hashes")
    assert cache_directory() == Path("/data/hashes")
