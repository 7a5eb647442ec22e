"""Responses that wait for the engine, and that notice when their client has gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse, Response

from divprune.runtime.serving.answers.wire import KEEP_ALIVE, AnswerFormat
from divprune.runtime.serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.serving.answers.job import Job

__all__ = ["AnswerResponse", "GoneResponse", "error_response"]

_KEEP_ALIVE_S = 15.0
_GONE = 499
_STREAM_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def error_response(error: ApiError) -> JSONResponse:
    """An error as the body of a response."""
    headers = dict(error.headers)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.to_dict(), error.status, headers)


class GoneResponse(Response):
    """Nothing: there is nobody left who could read it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Note that the client went away."""
        scope["divprune.status"] = _GONE


class AnswerResponse(Response):
    """The answer of a job, whole or as a stream.

    The status of a stream is sent with the first token, so that whatever fails before it is an
    error with a status of its own; only a long wait is bridged by comments.

    Args:
        job: In the queue already.
        answer: How it is written.
        describe: From the pruning of all pictures to what a client is told of it.
        stream: Whether it is sent as it is made.
        release: Called at the end, whatever happened.
    """

    def __init__(
        self,
        job: Job,
        answer: AnswerFormat,
        describe: Callable[[Sequence[Any]], Awaitable[list[dict[str, Any]]]],
        *,
        stream: bool,
        release: Callable[[], None],
    ) -> None:
        self._job = job
        self._answer = answer
        self._describe = describe
        self._stream = stream
        self._release = release
        self._open = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer as it comes; stop the job if the client goes away."""
        watch = asyncio.create_task(self._watch(receive))
        try:
            if self._stream:
                await self._send_stream(send)
            else:
                await self._send_whole(scope, receive, send)
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            if not self._job.finished:
                self._job.abandon()
            self._release()
            if self._job.abandoned:
                scope["divprune.status"] = _GONE
            elif self._job.error is not None:
                scope["divprune.status"] = self._job.error.status

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not self._job.finished:
            self._job.abandon()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in self._job.updates(_KEEP_ALIVE_S):
            pass
        job = self._job
        if job.abandoned:
            return
        if job.error is not None:
            await error_response(job.error)(scope, receive, send)
            return
        assert job.result is not None
        pruning = await self._describe(job.result.images)
        extra = self._figures(job.result, pruning)
        await JSONResponse(self._answer.whole(job.result, extra))(scope, receive, send)

    async def _send_stream(self, send: Send) -> None:
        pruning: list[dict[str, Any]] | None = None
        async for pieces in self._job.updates(_KEEP_ALIVE_S):
            if pieces is None:
                await self._write(send, KEEP_ALIVE)
                continue
            data = b""
            if pruning is None and self._job.prefill is not None:
                pruning = await self._describe(self._job.prefill.images)
                data = self._answer.first({"images": pruning})
            data += self._answer.pieces(pieces)
            if data:
                await self._write(send, data)
            if pieces and self._job.first_sent is None:
                self._job.first_sent = monotonic()
        if not self._job.abandoned:
            await self._end_stream(send, pruning or [])

    async def _end_stream(self, send: Send, pruning: list[dict[str, Any]]) -> None:
        job = self._job
        if job.error is None:
            assert job.result is not None
            brief = [
                {k: v for k, v in image.items() if k not in ("order", "boxes")} for image in pruning
            ]
            data = self._answer.last(job.result, self._figures(job.result, brief))
        elif not self._open:
            response = error_response(job.error)
            await send(
                {
                    "type": "http.response.start",
                    "status": response.status_code,
                    "headers": response.raw_headers,
                }
            )
            await send({"type": "http.response.body", "body": response.body})
            return
        else:
            data = self._answer.failed(job.error)
        await self._write(send, data, last=True)

    async def _write(self, send: Send, data: bytes, *, last: bool = False) -> None:
        if not self._open:
            self._open = True
            headers = [(k.encode(), v.encode()) for k, v in _STREAM_HEADERS.items()]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data, "more_body": not last})

    def _figures(self, result: GenerationResult, pruning: list[dict[str, Any]]) -> dict[str, Any]:
        job = self._job
        rate = result.timings.decode_tokens_per_second
        started = job.started or job.accepted
        spans = {
            "request": job.accepted - job.arrived,
            "decode": job.decode_s,
            "queue": started - job.accepted,
        }
        if job.first_piece is not None:
            spans["first_piece"] = job.first_piece - started
        if job.first_sent is not None:
            spans["first_sent"] = job.first_sent - job.arrived
        spans_ms = {name: round(1000 * seconds, 3) for name, seconds in spans.items()}
        return {
            "images": pruning,
            "timings_ms": {**spans_ms, **result.timings.to_dict()},
            "tokens_per_second": None if rate is None else round(rate, 2),
            "memory_bytes": result.memory.to_dict(),
            "backend": result.backend,
        }
