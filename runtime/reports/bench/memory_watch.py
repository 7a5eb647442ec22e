"""Memory, read every few milliseconds while something runs: the largest values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from divprune.runtime.memory import rss
from divprune.runtime.reports.bench.measure import Peaks
from divprune.runtime.reports.bench.polling import polling

__all__ = ["watch_memory"]

_SECONDS = 0.002


@contextmanager
def watch_memory(
    device: Callable[[], int | None] | None = None,
    host: Callable[[], int | None] = rss,
    seconds: float = _SECONDS,
) -> Iterator[Callable[[], Peaks]]:
    """Watch memory until the context ends.

    Args:
        device: Reads device memory in use in bytes; None where there is none to read.
        host: Reads the resident set in bytes.
        seconds: Pause between two readings.

    Yields:
        A function that reads once more and returns the peaks so far.
    """
    seen: list[list[int]] = [[], []]

    def look() -> None:
        for peak, read in zip(seen, (host, device), strict=True):
            value = read() if read else None
            if value is not None:
                peak[:] = [max(value, *peak)] if peak else [value]

    def peaks() -> Peaks:
        look()
        return Peaks(*(peak[0] if peak else None for peak in seen))

    look()
    with polling(look, seconds):
        yield peaks
