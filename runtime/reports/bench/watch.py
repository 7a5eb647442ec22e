"""Memory and power, read again and again by another thread while something runs.

Memory is read every few milliseconds, power every tenth of a second: a reading of power is a few
small files of the kernel, which fetches them over I2C without the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from divprune.runtime.memory import rss
from divprune.runtime.reports.bench.measure import Peaks

__all__ = ["polling", "watch_memory", "watch_power"]

_MEMORY_SECONDS = 0.002
_POWER_SECONDS = 0.1


@contextmanager
def watch_memory(
    device: Callable[[], int | None] | None = None,
    host: Callable[[], int | None] = rss,
    seconds: float = _MEMORY_SECONDS,
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


@contextmanager
def watch_power(
    read: Callable[[], float | None], seconds: float = _POWER_SECONDS
) -> Iterator[Callable[[], list[float]]]:
    """Watch power until the context ends; the first reading comes after the first pause.

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


@contextmanager
def polling(call: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call until the context ends, for the first time after the first pause.

    Args:
        call: Is called in another thread.
        seconds: Pause between two calls.
    """
    done = Event()

    def poll() -> None:
        while not done.wait(seconds):
            call()

    thread = Thread(target=poll, name="divprune-poll", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
