"""Who is next: a bounded queue that is fair to clients.

Clients take turns: one that sends a hundred requests delays another's single one by at most the
answer that is being made and one more. The last free place is given to a client that has none
waiting, so that one client alone cannot lock the others out.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from divprune.runtime.serving.errors import busy, draining

__all__ = ["FairQueue", "Place"]

_SMOOTHING = 0.2
_LONGEST_RETRY_S = 60


class Queued(Protocol):
    """What can wait: it knows whether anybody still wants it."""

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the answer any more."""
        ...


T = TypeVar("T", bound=Queued)


@dataclass(eq=False)
class Place(Generic[T]):
    """A place in the queue, taken before the work behind it is ready.

    Attributes:
        client: Whose it is.
        cost: Bytes that are held while it waits.
        work: What to do; None until it is ready.
    """

    client: str
    cost: int
    work: T | None = field(default=None)


class FairQueue(Generic[T]):
    """Places for work, given to clients in turn. Safe to use from several threads.

    Args:
        max_waiting: Places.
        max_cost: Bytes that all waiting work may hold together.
    """

    def __init__(self, max_waiting: int, max_cost: int) -> None:
        self._max_waiting = max_waiting
        self._max_cost = max_cost
        self._taken: set[Place[T]] = set()
        self._ready: OrderedDict[str, deque[Place[T]]] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = self._ended = False
        self._mean_s = 1.0

    def __len__(self) -> int:
        return len(self._taken)

    def reserve(self, client: str, cost: int) -> Place[T]:
        """Take a place.

        Raises:
            ApiError: 429 if there is none, 503 once the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise draining()
            free = self._max_waiting - len(self._taken)
            mine = sum(place.client == client for place in self._taken)
            if free < 1:
                raise busy("all places in the queue are taken", self.retry_after())
            if free == 1 and mine and self._max_waiting > 1:
                raise busy("the queue keeps its last place for others", self.retry_after())
            if self._taken and sum(place.cost for place in self._taken) + cost > self._max_cost:
                raise busy("the pictures that wait fill the memory for them", self.retry_after())
            place: Place[T] = Place(client, cost)
            self._taken.add(place)
            return place

    def commit(self, place: Place[T], work: T) -> None:
        """Say that the work for a place is ready.

        Raises:
            ApiError: 503 once the queue was drained; one that is closed still takes it.
        """
        with self._changed:
            if self._ended:
                self._taken.discard(place)
                raise draining()
            place.work = work
            self._ready.setdefault(place.client, deque()).append(place)
            self._changed.notify()

    def release(self, place: Place[T]) -> None:
        """Give a place back, whatever state it is in."""
        with self._changed:
            self._taken.discard(place)
            waiting = self._ready.get(place.client)
            if waiting is not None and place in waiting:
                waiting.remove(place)
                if not waiting:
                    del self._ready[place.client]
            self._changed.notify_all()

    def take(self, timeout: float | None = None) -> T | None:
        """The next work; None if the queue is closed and empty, or nothing came in time.

        A closed queue is not empty while somebody holds a place and is getting the work ready.
        """
        with self._changed:
            while True:
                if (place := self._next()) is not None:
                    return place.work
                over = self._ended or (self._closed and not self._taken)
                if over or not self._changed.wait(timeout):
                    return None

    def peek(self) -> T | None:
        """What ``take`` would give now; it stays where it is."""
        with self._changed:
            for waiting in self._ready.values():
                for place in waiting:
                    if place.work is not None and not place.work.abandoned:
                        return place.work
            return None

    def close(self) -> None:
        """Give no more places; what has one is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drain(self) -> list[T]:
        """Take out everything that waits; nothing is handed out any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            left = []
            while (place := self._next()) is not None:
                if place.work is not None:
                    left.append(place.work)
            return left

    def note_duration(self, seconds: float) -> None:
        """Say how long an answer took: ``retry_after`` reckons with it."""
        self._mean_s += _SMOOTHING * (seconds - self._mean_s)

    def retry_after(self) -> int:
        """Seconds until a place may be free."""
        expected = self._mean_s * max(1.0, len(self._taken) / 2)
        return max(1, min(_LONGEST_RETRY_S, math.ceil(expected)))

    def _next(self) -> Place[T] | None:
        """The next place of the client whose turn it is; the client goes to the end."""
        while self._ready:
            client, waiting = self._ready.popitem(last=False)
            place = waiting.popleft()
            if waiting:
                self._ready[client] = waiting
            self._taken.discard(place)
            if place.work is not None and not place.work.abandoned:
                return place
        return None
