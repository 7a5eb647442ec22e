"""A thread that calls something again and again, asleep in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

__all__ = ["polling"]


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
