"""Writes an engine directory beside its target and moves it into place when it is complete.

What may be replaced, what is said when the disk is full, and what a signal does; the moves
themselves are in ``atomic_directory``. A killed export leaves a directory that no tool takes
for an engine directory, and that the next export to the same target removes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from divprune.runtime.directory.atomic_directory import (
    exchange,
    make_partial,
    remove,
    remove_stale,
    replace,
    sync,
    sync_tree,
    without_new_parents,
)
from divprune.runtime.directory.file_hash import hash_file
from divprune.runtime.directory.manifest import MANIFEST_NAME, FileRecord
from divprune.runtime.directory.path_text import check_utf8
from divprune.runtime.errors import DivPruneError, EngineDirectoryError, OptionError
from divprune.runtime.memory import format_bytes

__all__ = ["check_free_space", "check_target", "record_files", "stage_directory"]

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def stage_directory(target: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty directory that becomes ``target`` when the block ends without an error.

    After an exception, Ctrl-C, SIGTERM or SIGHUP nothing is left behind and an existing target
    is as it was. All bytes are on the disk (fsync) before the target appears.

    Args:
        target: Where the directory is to be; missing parents are made.
        force: Replace an existing engine directory. Anything else that exists is refused.

    Raises:
        OptionError: if the target exists and is not to be replaced, or cannot be written.
        EngineDirectoryError: if the disk is full, or the block made a symbolic link.
    """
    check_target(target, force=force)
    target = target.resolve()
    with _signals_as_exit(), without_new_parents(target):
        remove_stale(target)
        with _output_errors(target):
            partial, lock = make_partial(target)
        try:
            yield partial
            _regular_files(partial)
            sync_tree(partial)
            check_target(target, force=force)
            _move_into_place(partial, target)
        except Exception as error:
            if _is_disk_full(error):
                raise _disk_full_error(partial, error) from error
            raise
        finally:
            remove(partial)  # after an exchange, this is what was replaced
            if lock is not None:
                os.close(lock)


def check_target(target: Path, *, force: bool) -> None:
    """Check that ``target`` does not exist, or that ``force`` may replace it.

    Raises:
        OptionError: otherwise. Even with ``force`` only an empty directory or one with the
            manifest of an export is deleted.
    """
    with _output_errors(target):
        target = target.resolve()
        check_utf8(target, "--output", "choose another --output")
        if not target.name:
            raise _refusal(target, "is the root directory", found="/")
        if not target.exists():
            return
        if not target.is_dir():
            raise _refusal(target, "exists and is not a directory", found="a file")
        if not force:
            fix = "choose another --output, or replace it with --force"
            raise _refusal(target, "exists", found="an existing directory", fix=fix)
        names = sorted(path.name for path in target.iterdir())
    if names and not _looks_exported(target):
        raise OptionError(
            f"{target} is not an engine directory: --force does not delete it",
            expected=f"an empty directory, or one with the {MANIFEST_NAME} of an export",
            found=", ".join(names[:5]) + (" ..." if len(names) > 5 else ""),
            fix=f"choose another --output, or delete it: rm -r {shlex.quote(str(target))}",
        )


def check_free_space(path: Path, needed_bytes: int) -> None:
    """Check that ``needed_bytes`` fit on the file system that holds, or will hold, ``path``.

    Raises:
        EngineDirectoryError: if they do not.
    """
    path = path.absolute()
    existing = next(place for place in (path, *path.parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise EngineDirectoryError(
            f"the disk of {existing} is too full for this export; nothing was written",
            expected=f"{format_bytes(needed_bytes)} free",
            found=f"{format_bytes(free)} free",
            fix="free some space, or choose another disk with --output",
        )


def record_files(
    directory: Path, on_chunk: Callable[[int], object] | None = None
) -> dict[str, FileRecord]:
    """Hash every file below ``directory`` but its manifest; sorted by relative path.

    Args:
        directory: The directory.
        on_chunk: Called with the number of bytes of each chunk that was hashed.

    Raises:
        EngineDirectoryError: for anything but regular files and directories.
    """
    files = {path.relative_to(directory).as_posix(): path for path in _regular_files(directory)}
    return {
        name: FileRecord(hash_file(path, on_chunk), path.stat().st_size)
        for name, path in sorted(files.items())
        if name != MANIFEST_NAME
    }


def _regular_files(directory: Path) -> list[Path]:
    entries = list(directory.rglob("*"))
    for path in entries:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise EngineDirectoryError(
                f"{path} does not survive a copy to the device",
                expected="regular files and directories only",
                found="a symbolic link" if path.is_symlink() else "a special file",
            )
    return [path for path in entries if path.is_file()]


def _looks_exported(directory: Path) -> bool:
    """Whether the manifest is ours; one too damaged to tell counts beside an ``llm`` folder."""
    try:
        content = json.loads((directory / MANIFEST_NAME).read_bytes())
    except ValueError:
        return (directory / "llm").is_dir()
    except (OSError, RecursionError):
        return False
    return isinstance(content, dict) and "schema_version" in content


def _refusal(
    target: Path, problem: str, *, found: object, fix: str = "choose another --output"
) -> OptionError:
    expected = "a directory that does not exist yet"
    return OptionError(f"--output {target} {problem}", expected=expected, found=found, fix=fix)


@contextlib.contextmanager
def _output_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        if _is_disk_full(error):
            raise
        raise OptionError(
            f"--output {target} cannot be written",
            expected="a place where a directory can be made, and moved (no mount point)",
            found=error,
            fix="choose another --output",
        ) from error


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """Let signals that would end the process raise SystemExit, so that clean-up happens.

    Signals that somebody else handles or ignores (nohup) stay as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
    taken = [number for number in known if number and signal.getsignal(number) is signal.SIG_DFL]

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)  # the clean-up is not to be interrupted
        raise SystemExit(128 + number)

    for number in taken:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _move_into_place(partial: Path, target: Path) -> None:
    with _output_errors(target):
        if not target.exists():
            partial.rename(target)
        elif not exchange(partial, target):
            replace(partial, target)
        sync(target.parent)


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether the error, or one that it comes from, is a write that found no space.

    Libraries that write from Rust or C++ only say it in their message.
    """
    if error is None or isinstance(error, DivPruneError):
        return False
    if getattr(error, "errno", None) in _DISK_FULL or "No space left on device" in str(error):
        return True
    return _is_disk_full(error.__cause__ or error.__context__)


def _disk_full_error(partial: Path, error: Exception) -> EngineDirectoryError:
    written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial.parent).free
    return EngineDirectoryError(
        f"the export does not fit on the disk ({error}); nothing was left behind",
        expected=f"more than {format_bytes(written)} for the whole export, and files of that size",
        found=f"{format_bytes(free)} free after {format_bytes(written)} were written",
        fix="free some space, or choose another disk with --output",
    )
