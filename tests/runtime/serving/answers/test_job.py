"""Pieces of an answer on their way from the worker's thread to the server's loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from divprune.runtime.serving.answers import job as job_module
from divprune.runtime.serving.answers.job import Job

SOON_S = 5.0
NOTHING: Any = None


@pytest.fixture(autouse=True)
def endless_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for the next look waits longer than a test may take."""
    monkeypatch.setattr(job_module, "_TICK_S", 60.0)


def new_job(deadline_s: float = 60.0) -> Job:
    return Job(NOTHING, time.monotonic() + deadline_s, asyncio.get_running_loop())


def from_worker(function: Callable[..., None], *arguments: Any) -> None:
    """Call from another thread, to its end."""
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


async def following(updates: AsyncIterator[Any]) -> Any:
    return await asyncio.wait_for(anext(updates), SOON_S)


def test_first_piece_comes_at_once_though_the_prefill_was_told_before() -> None:
    async def run() -> None:
        job = new_job()
        updates = job.updates(60)
        from_worker(job.begin, NOTHING)
        assert await following(updates) == []
        from_worker(job.push, "a")
        assert await following(updates) == ["a"]
        assert job.first_piece is not None

    asyncio.run(run())


def test_later_pieces_wait_for_the_next_look_or_the_end() -> None:
    async def run() -> None:
        job = new_job()
        updates = job.updates(60)
        from_worker(job.push, "a")
        assert await following(updates) == ["a"]
        waiting = asyncio.ensure_future(anext(updates))
        from_worker(job.push, "b")
        await asyncio.sleep(0.05)
        assert not waiting.done()
        from_worker(job.push, "c")
        from_worker(job.finish, NOTHING, NOTHING)
        assert await asyncio.wait_for(waiting, SOON_S) == ["b", "c"]
        with pytest.raises(StopAsyncIteration):
            await following(updates)

    asyncio.run(run())


def test_silence_is_told_again_and_again_until_the_deadline() -> None:
    async def run() -> None:
        job = new_job(deadline_s=0.3)
        found = [pieces async for pieces in job.updates(0.05)]
        assert found.count(None) >= 2
        assert found[-1] == []
        assert job.error is not None
        assert job.error.status == 504

    asyncio.run(run())


def test_abandoned_job_gives_nothing_more() -> None:
    async def run() -> None:
        job = new_job()
        waiting = asyncio.ensure_future(anext(job.updates(60)))
        await asyncio.sleep(0)
        job.abandon()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, SOON_S)

    asyncio.run(run())
