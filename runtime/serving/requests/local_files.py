"""Files below one folder, for clients that may name them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["read_below"]


def read_below(folder: Path, name: str, limit: int) -> bytes | None:
    """The bytes of a regular file below ``folder``; None for everything else.

    Every part of the way is opened by itself and without following links, so that neither ``..``
    nor a link, not even one that is swapped in meanwhile, leads out of the folder.

    Args:
        folder: The root.
        name: Relative to it, with forward slashes.
        limit: Most bytes of the file.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or "\0" in name:
        return None
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=opened)
            os.close(opened)
            opened = inner
        # Not blocking: to open a pipe would otherwise wait for its other end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(parts[-1], flags, dir_fd=opened)
    except OSError:
        return None
    finally:
        os.close(opened)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(file)
        return None
    with os.fdopen(file, "rb") as stream:
        return stream.read(limit)
