"""A directory beside its target: made and locked, synced, moved into place in one step.

The temporary directory is ``.<name>.partial-<random>``. Its writer holds a lock on it
(``flock``, which ends with the process however that ends), so that the next one can tell a
directory that a killed process left from one that is still being written. What is replaced
without an exchange is ``.<name>.old-<random>`` for a moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = [
    "exchange",
    "make_partial",
    "remove",
    "remove_stale",
    "replace",
    "sync",
    "sync_tree",
    "without_new_parents",
]

_LOGGER = logging.getLogger(__name__)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def without_new_parents(target: Path) -> Iterator[None]:
    """Remove the parents that were made for the target if it never came to be."""
    missing = [parent for parent in target.parents if not parent.exists()]
    try:
        yield
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):  # not empty: the target, or somebody else's
                parent.rmdir()


def make_partial(target: Path) -> tuple[Path, int | None]:
    """Make an empty directory beside ``target``, and its parents.

    Returns:
        The directory and the descriptor that holds its lock, which the caller closes; None
        where file systems have no such locks.

    Raises:
        OSError: if it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        partial = _sibling(target, "partial")
        partial.mkdir()
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            lock = _lock(partial)
            if partial.exists():
                return partial, lock
            if lock is not None:
                os.close(lock)
        # Another export saw it before it was locked and removed it as stale: once more.


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def _lock(directory: Path) -> int | None:
    """A descriptor that holds the lock; None where file systems have no such locks.

    Raises:
        BlockingIOError: if a process holds it.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return descriptor


def remove_stale(target: Path) -> None:
    """Remove what killed exports to the same target left, but nothing that is in use."""
    pattern = re.compile(re.escape(f".{target.name}.") + r"(partial|old)-[0-9a-f]{8}")
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            match = pattern.fullmatch(path.name)
            # Without a target, an "old" directory is all that is left of it.
            if match and (match[1] == "partial" or target.exists()):
                _remove_unless_locked(path)


def _remove_unless_locked(path: Path) -> None:
    try:
        lock = _lock(path)
    except OSError:
        return
    if lock is None:
        _LOGGER.warning("%s may be left from a killed export: no locks here to tell", path)
        return
    _LOGGER.info("removing %s, left from a killed export", path)
    remove(path)
    os.close(lock)


def exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step (Linux); False where that is not to be had."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = [argument for path in (one, other) for argument in (_AT_FDCWD, os.fsencode(path))]
    return renameat2 is not None and renameat2(*paths, _RENAME_EXCHANGE) == 0


def replace(partial: Path, target: Path) -> None:
    """Put ``partial`` in the place of ``target`` in two steps, or leave both as they were."""
    aside = _sibling(target, "old")
    target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    remove(aside)


def sync_tree(directory: Path) -> None:
    """Wait until everything below a directory is on the disk: files first, then names."""
    paths = list(directory.rglob("*"))
    folders = [path for path in paths if path.is_dir()]
    for path in (*(path for path in paths if path.is_file()), directory, *folders):
        sync(path)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a directory, are on the disk."""
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(directory: Path) -> None:
    """Delete a directory; what cannot be deleted is a warning with the command for it."""
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        _LOGGER.warning("cannot remove %s: rm -r %s", directory, shlex.quote(str(directory)))
