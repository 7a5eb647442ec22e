"""A directory appears complete or not at all, and nothing else is ever deleted."""

import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from divprune.export.output import staging
from divprune.export.output.staging import check_free_space, record_files, stage_directory
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import FileRecord
from divprune.runtime.errors import DivPruneError, EngineDirectoryError, OptionError

MANIFEST = '{"schema_version": 1}'
EXPORT = """
import sys, time
from pathlib import Path
from divprune.export.output.staging import stage_directory
with stage_directory(Path(sys.argv[1]), force=True) as directory:
    (directory / "manifest.json").write_text('{"schema_version": 1}')
    (directory / "weights").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "engine"


@pytest.fixture
def old_export(target: Path) -> Path:
    target.mkdir()
    (target / "manifest.json").write_text(MANIFEST)
    (target / "old").write_text("old")
    return target


@pytest.fixture
def start_export() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Starts an export in another process and waits until it is half-way."""
    running: list[subprocess.Popen] = []

    def start(target: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", EXPORT, str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        running.append(process)
        assert process.stdout.readline() == b"writing\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_export(directory: Path) -> None:
    (directory / "manifest.json").write_text(MANIFEST)
    (directory / "llm").mkdir()
    (directory / "llm" / "model.onnx").write_text("new")


def export(
    target: Path, write: Callable[[Path], object] = write_export, *, force: bool = False
) -> None:
    with stage_directory(target, force=force) as directory:
        write(directory)


def test_directory_appears_when_the_block_ends(target: Path):
    with stage_directory(target, force=False) as directory:
        (directory / "weights").write_text("bytes")
        assert not target.exists()
        assert directory.parent == target.parent
    assert names(target.parent) == ["engine"]
    assert names(target) == ["weights"]


def test_missing_parents_are_made(tmp_path: Path):
    export(tmp_path / "a" / "b" / "engine")
    assert names(tmp_path / "a" / "b") == ["engine"]


def test_directory_has_the_usual_permissions(target: Path):
    export(target)
    (target.parent / "usual").mkdir()
    assert target.stat().st_mode == (target.parent / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, error: type[BaseException]):
    def fail(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise error

    with pytest.raises(error):
        export(tmp_path / "new" / "parents" / "engine", fail)
    assert names(tmp_path) == []


def test_parents_that_somebody_else_uses_meanwhile_stay(tmp_path: Path):
    def fail(directory: Path) -> None:
        directory.with_name("notes").write_text("mine")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        export(tmp_path / "new" / "engine", fail)
    assert names(tmp_path / "new") == ["notes"]


def test_existing_target_is_refused_before_anything_is_written(old_export: Path):
    with pytest.raises(OptionError, match="--force"):
        export(old_export, lambda directory: pytest.fail(f"{directory} was made"))
    assert names(old_export.parent) == ["engine"]
    assert names(old_export) == ["manifest.json", "old"]


def test_empty_directory_needs_force_too(target: Path):
    target.mkdir()
    with pytest.raises(OptionError, match="--force"):
        export(target)
    export(target, force=True)
    assert "llm" in names(target)


def test_target_that_appears_meanwhile_is_not_replaced_without_force(target: Path):
    with pytest.raises(OptionError, match="exists"):
        export(target, lambda _: target.mkdir())
    assert names(target) == []
    assert names(target.parent) == ["engine"]


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_all_of_an_engine_directory(
    old_export: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
):
    if not exchange:
        monkeypatch.setattr(staging, "exchange", lambda one, other: False)
    export(old_export, force=True)
    assert names(old_export) == ["llm", "manifest.json"]
    assert names(old_export.parent) == ["engine"]


def test_exchange_really_swaps_on_linux(tmp_path: Path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not staging.exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("renameat2 is not available on this system")
    assert names(tmp_path / "one") == ["other"]
    assert names(tmp_path / "other") == ["one"]


def test_old_directory_is_as_it_was_after_a_failed_replacement(old_export: Path):
    def fail(directory: Path) -> None:
        (directory / "weights").write_text("half")
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        export(old_export, fail, force=True)
    assert names(old_export) == ["manifest.json", "old"]
    assert names(old_export.parent) == ["engine"]


def test_old_directory_is_put_back_if_the_new_one_cannot_be_moved(old_export: Path):
    with pytest.raises(FileNotFoundError):
        staging.replace(old_export.with_name("vanished"), old_export)
    assert names(old_export) == ["manifest.json", "old"]
    assert names(old_export.parent) == ["engine"]


@pytest.mark.parametrize(
    "content", [{}, {"manifest.json": '{"manifest_version": 3}'}, {"manifest.json": "// no JSON"}]
)
def test_force_does_not_delete_what_no_export_wrote(target: Path, content: dict[str, str]):
    (target / "letters").mkdir(parents=True)
    for name, text in content.items():
        (target / name).write_text(text)
    before = names(target)
    with pytest.raises(OptionError, match="not an engine directory") as caught:
        export(target, force=True)
    assert "letters" in str(caught.value)
    assert f"rm -r {target}" in str(caught.value)
    assert names(target) == before


def test_force_replaces_an_export_with_a_damaged_manifest(target: Path):
    export(target)
    (target / "manifest.json").write_text('{"schema_ver')
    export(target, force=True)
    assert (target / "manifest.json").read_text() == MANIFEST


@pytest.mark.parametrize("force", [True, False])
def test_file_in_the_place_of_the_target_is_refused(target: Path, force: bool):
    target.write_text("mine")
    with pytest.raises(OptionError, match="not a directory"):
        export(target, force=force)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("name", [b"\xff", b"a/\xe4", b"\xc3", b"\xed\xa0\x80", b"\xf8/b"])
def test_a_name_that_is_not_utf8_is_refused_before_the_export_begins(tmp_path: Path, name: bytes):
    target = tmp_path / os.fsdecode(name)
    with pytest.raises(OptionError, match=r"(?s)not text in UTF-8.*LC_ALL=C.UTF-8"):
        export(target)
    assert names(tmp_path) == []


def test_root_directory_is_refused():
    with pytest.raises(OptionError, match="root directory"):
        export(Path("/"), force=True)


def test_loop_of_links_is_refused(target: Path):
    target.symlink_to(target)
    with pytest.raises(OptionError, match="--output"):
        export(target)


def test_link_to_an_export_stays_and_what_it_points_to_is_replaced(
    old_export: Path, tmp_path: Path
):
    link = tmp_path / "current"
    link.symlink_to(old_export)
    export(link, force=True)
    assert link.is_symlink()
    assert names(old_export) == ["llm", "manifest.json"]


def test_current_directory_can_be_the_target(old_export: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(old_export)
    export(Path(), force=True)
    assert names(old_export) == ["llm", "manifest.json"]


def test_parent_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot be written"):
        export(tmp_path / "file" / "engine")


def test_parent_that_cannot_be_written_is_refused():
    script = (
        "import os, sys; from pathlib import Path\n"
        "from divprune.runtime.errors import OptionError\n"
        "from divprune.export.output.staging import stage_directory\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try:\n"
        "    with stage_directory(Path(sys.argv[1], 'new', 'engine'), force=False): pass\n"
        "except OptionError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o555)
        message = subprocess.check_output([sys.executable, "-c", script, parent], text=True)
        assert names(Path(parent)) == []
    assert "cannot be written" in message
    assert "Permission denied" in message


def test_name_that_is_too_long_is_refused(tmp_path: Path):
    with pytest.raises(OptionError, match="too long"):
        export(tmp_path / ("x" * 250))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name
)
def test_nothing_is_left_after_a_signal(old_export: Path, start_export, number: signal.Signals):
    process = start_export(old_export)
    process.send_signal(number)
    assert process.wait(20) == (-2 if number == signal.SIGINT else 128 + number)
    assert names(old_export.parent) == ["engine"]
    assert names(old_export) == ["manifest.json", "old"]


def test_killed_export_leaves_what_no_tool_takes_and_the_next_one_removes(
    target: Path, start_export
):
    process = start_export(target)
    process.kill()
    process.wait(20)
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".engine.partial-")
    with pytest.raises(EngineDirectoryError, match="interrupted export"):
        EngineDirectory.open(left)
    export(target)
    assert names(target.parent) == ["engine"]


def test_export_that_is_still_writing_is_left_alone(target: Path, start_export):
    process = start_export(target)
    export(target)
    (partial,) = target.parent.glob(".engine.partial-*")
    assert names(partial) == ["manifest.json", "weights"]
    process.terminate()
    process.wait(20)
    assert names(target.parent) == ["engine"]
    assert "llm" in names(target)


def test_leftovers_of_other_targets_and_look_alikes_are_left_alone(tmp_path: Path):
    others = [".engine2.partial-00000000", ".engine.partial-mine", ".engine.old-00000000"]
    for name in others:
        (tmp_path / name).mkdir()

    def fail(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "engine", fail)
    assert names(tmp_path) == sorted(others)


def test_replaced_directory_that_a_kill_left_is_removed_once_there_is_a_target(old_export: Path):
    old_export.with_name(".engine.old-00000000").mkdir()
    export(old_export, force=True)
    assert names(old_export.parent) == ["engine"]


def test_signal_handlers_are_as_before_afterwards(target: Path):
    previous = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with stage_directory(target, force=False):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_handler_of_the_application_stays(target: Path):
    def handler(*_: object) -> None: ...

    previous = signal.signal(signal.SIGTERM, handler)
    try:
        with stage_directory(target, force=False):
            assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_export_works_in_a_thread_that_cannot_have_signal_handlers(target: Path):
    thread = threading.Thread(target=export, args=(target,))
    thread.start()
    thread.join()
    assert names(target.parent) == ["engine"]


def test_error_of_the_block_that_the_user_can_mend_stays_as_it_is(target: Path):
    def fail(_: Path) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise DivPruneError("told better") from error

    with pytest.raises(DivPruneError, match="told better"):
        export(target, fail)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_is_told_and_nothing_is_left(small_disk: Path):
    def fill(directory: Path) -> None:
        (directory / "first").write_bytes(bytes(600_000))
        (directory / "second").write_bytes(bytes(600_000))

    with pytest.raises(EngineDirectoryError) as caught:
        export(small_disk / "deep" / "engine", fill)
    message = str(caught.value)
    assert "No space left on device" in message
    assert "nothing was left behind" in message
    assert "were written" in message
    assert names(small_disk) == []


def test_full_disk_that_a_library_only_mentions_is_told_too(target: Path):
    def fail(_: Path) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(EngineDirectoryError, match="does not fit"):
        export(target, fail)
    assert names(target.parent) == []


def test_limit_on_file_size_is_told_and_nothing_is_left(tmp_path: Path):
    script = (
        "import sys; from pathlib import Path\n"
        "from divprune.export.output.staging import stage_directory\n"
        "with stage_directory(Path(sys.argv[1]), force=False) as directory:\n"
        "    (directory / 'weights').write_bytes(bytes(1 << 20))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "engine")],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    assert "EngineDirectoryError: the export does not fit on the disk" in result.stderr
    assert "File too large" in result.stderr
    assert names(tmp_path) == []


def test_too_little_free_space_is_told_with_both_numbers(tmp_path: Path):
    with pytest.raises(EngineDirectoryError) as caught:
        check_free_space(tmp_path / "not" / "there" / "yet", 1 << 60)
    assert caught.value.expected == "1,073,741,824 GiB free"
    assert str(caught.value.found).endswith("iB free")


def test_enough_free_space_is_enough(tmp_path: Path):
    check_free_space(tmp_path / "not" / "there" / "yet", 1)


def test_all_files_but_the_manifest_are_recorded(tmp_path: Path):
    content = {"llm/model.onnx": b"llm", "llm/manifest.json": b"{}", "empty": b"", "a": b"a"}
    for name, data in {**content, "manifest.json": b"{}"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    chunks: list[int] = []
    records = record_files(tmp_path, chunks.append)
    assert records == {
        name: FileRecord(hashlib.sha256(data).hexdigest(), len(data))
        for name, data in content.items()
    }
    assert list(records) == sorted(records)
    assert sum(chunks) == 6


@pytest.mark.parametrize("kind", ["link", "link to nothing", "link to a directory", "fifo"])
def test_what_a_copy_would_lose_is_refused(target: Path, tmp_path: Path, kind: str):
    def write(directory: Path) -> None:
        if kind == "fifo":
            os.mkfifo(directory / "special")
        else:
            goals = {"link": "file", "link to a directory": ""}
            (directory / "special").symlink_to(tmp_path / goals.get(kind, "nothing"))
        with pytest.raises(EngineDirectoryError, match="does not survive a copy"):
            record_files(directory)

    (tmp_path / "file").write_text("outside")
    with pytest.raises(EngineDirectoryError, match="does not survive a copy"):
        export(target, write)
    assert names(tmp_path) == ["file"]
