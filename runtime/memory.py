"""How much memory this process has needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["peak_rss", "rss"]

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")


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
