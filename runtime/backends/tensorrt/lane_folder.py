"""The folder of a lane: filled beside its place, moved into it when every engine is there."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

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
from divprune.runtime.errors import BackendError
from divprune.runtime.memory import format_bytes

__all__ = ["check_free_space", "stage_lane"]


@contextlib.contextmanager
def stage_lane(lane: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``lane`` when the block ends without an error.

    A build that is killed leaves ``.<lane>.partial-<random>``, which nothing takes for engines
    and the next build removes; engines that were there before stay as they are.

    Raises:
        BackendError: if the folder cannot be made.
    """
    with without_new_parents(lane):
        remove_stale(lane)
        try:
            partial, lock = make_partial(lane)
        except (FileExistsError, NotADirectoryError):
            raise BackendError(
                f"{lane.parent} is no folder",
                expected="the folder of the engines, or nothing of that name",
                fix=f"give it another name: mv {shlex.quote(str(lane.parent))} NAME",
            ) from None
        except OSError as error:
            raise BackendError(
                f"{lane} cannot be written",
                expected="an engine directory in which folders can be made",
                found=error.strerror or error,
                fix="copy the engine directory to a place of your own",
            ) from error
        try:
            yield partial
            sync_tree(partial)
            if not lane.exists():
                partial.rename(lane)
            elif not exchange(partial, lane):
                replace(partial, lane)
            sync(lane.parent)
        finally:
            remove(partial)
            if lock is not None:
                os.close(lock)


def check_free_space(directory: Path, needed_bytes: int) -> None:
    """Check that engines of about ``needed_bytes`` fit on the disk.

    Raises:
        BackendError: if they do not.
    """
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise BackendError(
            f"the disk of {directory} is too full for the engines; nothing was built",
            expected=f"about {format_bytes(needed_bytes)} free, the size of the graphs",
            found=f"{format_bytes(free)} free",
            fix="free some space, or move the engine directory to another disk",
        )
