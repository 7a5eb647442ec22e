"""Power, read every tenth of a second while an answer is measured.

The thread that reads sleeps nearly all the time: a reading is a few small files of the kernel,
which fetches them over I2C without the interpreter's lock. The first comes after the first
tenth of a second, and the one that every answer has comes when the answer is done; so does
the selection that is timed on its own, which is watched as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from divprune.runtime.reports.bench.polling import polling

__all__ = ["watch_power"]

_SECONDS = 0.1


@contextmanager
def watch_power(
    read: Callable[[], float | None], seconds: float = _SECONDS
) -> Iterator[Callable[[], list[float]]]:
    """Watch power until the context ends.

    Args:
        read: Reads the power being drawn in watts; None where it could not be read this time.
        seconds: Pause between two readings.

    Yields:
        A function that reads once more and returns all readings so far, in watts.
    """
    seen: list[float] = []

    def look() -> None:
        watts = read()
        if watts is not None:
            seen.append(watts)

    def readings() -> list[float]:
        look()
        return list(seen)

    with polling(look, seconds):
        yield readings
