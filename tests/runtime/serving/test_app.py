"""The application without a socket: what becomes of a request whose handler is cancelled."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("starlette", reason="the extra serve is not installed")

from starlette.requests import Request

from divprune.runtime.pipeline import Pipeline
from divprune.runtime.serving import app
from divprune.runtime.serving.options import ServerOptions

PATIENCE_S = 10.0


def request_of(body: bytes) -> Request:
    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "divprune.owner": "", "divprune.arrived": 0.0, "client": None}
    return Request(scope, receive)


def test_a_request_cancelled_while_it_is_decoded_leaves_nothing_in_the_queue(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = app.ChatServer(Pipeline.from_dir(engine_dir), ServerOptions("model"))
    decoding, go_on = threading.Event(), threading.Event()
    decode, put_back, returned = app.decode_messages, server._put_back, threading.Event()

    def slow_decode(*arguments):
        decoding.set()
        assert go_on.wait(PATIENCE_S)
        return decode(*arguments)

    def noted(taking):
        put_back(taking)
        returned.set()

    monkeypatch.setattr(app, "decode_messages", slow_decode)
    monkeypatch.setattr(server, "_put_back", noted)
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}]}).encode()

    async def run() -> None:
        handling = asyncio.ensure_future(server._accept(request_of(body)))
        assert await asyncio.to_thread(decoding.wait, PATIENCE_S)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling

    asyncio.run(run())
    go_on.set()
    assert returned.wait(PATIENCE_S)
    assert len(server._queue) == 0
    assert server._queue.peek() is None
