"""Work on parts of a picture in several threads: Pillow, NumPy and hashlib let go of the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

__all__ = ["run_each"]

T = TypeVar("T")
R = TypeVar("R")
_MOST_THREADS = 8


def run_each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """``[function(item) for item in items]``, several at a time where there are several cores.

    Args:
        function: Must not call ``run_each`` itself: the threads are the same for all callers.
        items: What it is called with.
    """
    threads = min(_cores(), _MOST_THREADS)
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    return list(_pool(threads).map(function, items))


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "divprune-pixels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child inherits no threads
