"""How much memory this process has needed, and how it gives memory back."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

__all__ = ["peak_rss", "release_freed_memory", "rss"]

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")


def release_freed_memory() -> None:
    """Collect garbage and let glibc return what is free.

    Blocks of up to 32 MiB lie in its heap, which does not shrink by itself: what a vision tower
    leaves there, in an export or in a run, would stay on top of everything that follows.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # absent in musl
        if trim is not None:
            trim(0)


def rss() -> int | None:
    """Resident set of this process right now in bytes; None where there is no ``/proc``."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss() -> int | None:
    """Largest resident set of this process so far in bytes; None where it cannot be told.

    Linux's ``VmHWM`` comes first: ``ru_maxrss`` survives exec, so that a child of a large
    process would report the size of its parent.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
