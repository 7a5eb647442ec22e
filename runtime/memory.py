"""Memory that this process has needed, how it gives memory back, and sizes as people read them."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

__all__ = [
    "format_bytes",
    "free_blocks_at_once",
    "page_out",
    "peak_rss",
    "release_freed_memory",
    "rss",
    "share_one_heap",
]

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")
_MAPS = Path("/proc/self/maps")
_MADV_PAGEOUT = 21
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8


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


def free_blocks_at_once() -> None:
    """Let glibc return every block of 4 MiB or more to the system when it is freed.

    By itself it keeps those of up to 32 MiB, and small ones that lie above them keep all of them.
    The peak of a process that reads one layer after another then is that of many layers.
    """
    _set_malloc(_M_MMAP_THRESHOLD, 4 << 20)


def share_one_heap() -> None:
    """Let all threads that are started from now on allocate from the main thread's heap.

    glibc gives a thread a heap of its own, which returns what is freed at once: a model that runs
    in such a thread touches new pages in every step.
    """
    _set_malloc(_M_ARENA_MAX, 1)


def _set_malloc(parameter: int, value: int) -> None:
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # absent in musl
        if mallopt is not None:
            mallopt(parameter, value)


def page_out(folder: Path) -> None:
    """Let the system take back pages of files in ``folder`` that are mapped and in memory.

    What was read of them once, to be rearranged, counts as this process's memory until then.
    Nothing is lost: a page that is read again comes from the file. Linux >= 5.4; elsewhere
    nothing happens.
    """
    if not _MAPS.exists():
        return
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is None:
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    prefix = f"{folder.resolve()}{os.sep}"
    for line in _MAPS.read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        if path.startswith(prefix):
            start, end = (int(address, 16) for address in addresses.split("-"))
            madvise(start, end - start, _MADV_PAGEOUT)


def format_bytes(count: int) -> str:
    """``count`` bytes in the largest binary unit that they fill: ``14.7 MiB``."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            value = count / size
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{count} B"


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
