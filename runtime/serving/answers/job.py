"""One request on its way: made by the server's event loop, answered by the worker thread.

The first piece of text wakes the loop at once. Later ones cross over without a wake-up each: the
loop looks at most every few milliseconds, and finds all pieces that have come since. A small model
makes a token in a millisecond, and two threads that wake each other for every one of them would
slow it down by a third.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from divprune.runtime.serving.errors import ApiError, timed_out

if TYPE_CHECKING:
    from divprune.runtime.generation.generation import Prefill
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.generation.sampling import SamplingOptions

__all__ = ["ChatWork", "Job"]

_TICK_S = 0.01


@dataclass(frozen=True)
class ChatWork:
    """What the pipeline is asked.

    Attributes:
        messages: With pictures in them, as ``Pipeline.chat`` takes them.
        keep: Fraction of visual tokens kept, or ``auto:C``; None: as exported.
        max_tokens: Longest answer.
        sampling: How tokens are chosen.
        stop: Texts that end the answer.
        scope: Whose caches may be used.
    """

    messages: list[dict[str, Any]]
    keep: float | str | None
    max_tokens: int
    sampling: SamplingOptions
    stop: tuple[str, ...]
    scope: str

    @property
    def has_media(self) -> bool:
        """Whether there is a picture or video in it."""
        return any(part["type"] != "text" for each in self.messages for part in each["content"])


@dataclass(eq=False)
class Job:
    """A request and its answer so far.

    Attributes:
        work: What is asked.
        deadline: ``time.monotonic`` at which it must be finished.
        loop: The server's; the job itself may be made in any thread.
        arrived: ``time.monotonic`` at which the head of its request was read.
        decode_s: Seconds that decoding its pictures took.
        accepted: ``time.monotonic`` at which it was accepted.
        started: The same when the worker began; None before.
        first_token: The same when the first token was chosen; None before.
        first_piece: The same when the first piece of text was there; None before.
        first_sent: The same when it had been handed to the socket; None before.
        prefill: What is known with the first token; None before.
        result: The whole answer; None before its end, and where it failed.
        error: Why there is no answer; None where there is.
        seen_ahead: Its pictures were encoded, or tried, while it waited.
    """

    work: ChatWork
    deadline: float
    loop: asyncio.AbstractEventLoop
    arrived: float = field(default_factory=monotonic)
    decode_s: float = 0.0
    accepted: float = field(default_factory=monotonic)
    started: float | None = None
    first_token: float | None = None
    first_piece: float | None = None
    first_sent: float | None = None
    prefill: Prefill | None = None
    result: GenerationResult | None = None
    error: ApiError | None = None
    seen_ahead: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _looked: asyncio.Event = field(default_factory=asyncio.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _pieces: list[str] = field(default_factory=list)
    _told: bool = False
    _finished: bool = False
    _abandoned: bool = False

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the answer any more."""
        return self._abandoned

    def abandon(self) -> None:
        """Loop: say that nobody waits for the answer any more; ``updates`` ends."""
        self._abandoned = True
        self._changed.set()

    @property
    def finished(self) -> bool:
        """No further piece will come."""
        return self._finished

    def begin(self, prefill: Prefill) -> None:
        """Worker: the first token is chosen."""
        self.prefill = prefill
        self.first_token = monotonic()
        self._tell()

    def push(self, piece: str) -> None:
        """Worker: a piece of the answer."""
        if self.first_piece is None:
            self.first_piece = monotonic()
        with self._lock:
            self._pieces.append(piece)
        self._tell()

    def finish(self, result: GenerationResult | None, error: ApiError | None = None) -> None:
        """Worker: the end, with a result or an error; only the first call counts."""
        with self._lock:
            if self._finished:
                return
            self.result, self.error = result, error
            self._finished = True
        self._tell()
        self._call(self._looked.set)

    async def updates(self, silence_s: float) -> AsyncIterator[list[str] | None]:
        """Loop: new pieces whenever there are some, until the end or until it is abandoned.

        A job that is late ends with an error, whatever the worker is doing.

        Args:
            silence_s: Seconds after which None is given where nothing has happened.
        """
        while not self._abandoned:
            asked = monotonic()
            patience = min(silence_s, max(0.0, self.deadline - asked))
            await self._wait(self._changed, patience)
            self._changed.clear()
            if not self._told and monotonic() - asked >= patience:
                if monotonic() >= self.deadline:
                    self.finish(None, timed_out("the answer did not end in time"))
                elif not self._abandoned:
                    yield None
                continue
            self._told = False
            with self._lock:
                finished = self._finished
                pieces, self._pieces = self._pieces, []
            if not self._abandoned:
                yield pieces
            if finished:
                return
            if pieces:
                self._looked.clear()
                if not self._finished:
                    await self._wait(self._looked, _TICK_S)

    async def _wait(self, event: asyncio.Event, seconds: float) -> None:
        """Until something sets the event, or sets it itself after a while.

        ``asyncio.wait_for`` would make a task each time, which a token has no time for.
        """
        timer = self.loop.call_later(seconds, event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._call(self._changed.set)

    def _call(self, function: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has been closed: nobody is left to be told
            self._abandoned = True
