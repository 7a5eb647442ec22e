"""A real ``divprune-serve`` on a free port, and a small client without a library."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = [
    "Reply",
    "ServingProcess",
    "ask",
    "noise_png",
    "picture_part",
    "read_events",
    "until",
]

_ADDRESS = re.compile(r"^(?P<model>\S+) at http://(?P<host>[\d.]+):(?P<port>\d+)$")
_START_S = 60
_STOP_S = 60


class ServingProcess:
    """Starts the server; a context manager that stops it.

    Attributes:
        model: What it calls its model.
        port: Where it listens.
        log: Lines of its stderr so far.
    """

    def __init__(self, engine_dir: Path, *arguments: object) -> None:
        command = [sys.executable, "-m", "divprune.runtime.cli.serve", engine_dir, "--port", 0]
        self.process = subprocess.Popen(
            [*map(str, command), "--threads", "1", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.rstrip())
            if match := _ADDRESS.match(self.log[-1]):
                self.model, self.port = match["model"], int(match["port"])
                break
        else:
            raise AssertionError(f"the server did not start: {self.log}")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(line.rstrip() for line in self.process.stderr)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ServingProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Ask it to go; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        try:
            return self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, None, headers)

    def request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None
    ) -> Reply:
        connection = self.connect()
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def chat(self, content: Any, *, key: str | None = None, **fields: Any) -> Reply:
        """Ask; ``content`` is that of one user's message, or a list of messages."""
        body = ask(content, **fields)
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return self.request("POST", "/v1/chat/completions", body, headers)

    def metric(self, name: str, label: str = "", key: str = "") -> float:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for line in self.get("/metrics", **headers).text.splitlines():
            if line.startswith(f"divprune_{name}{label} "):
                return float(line.split()[-1])
        return 0.0


class Reply:
    """What came back."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def answer(self) -> str:
        """The text of an answer, whole or streamed."""
        if self.headers["content-type"].startswith("text/event-stream"):
            choices = [choice for event in self.events for choice in event.get("choices", [])]
            return "".join(choice["delta"].get("content", "") for choice in choices)
        answer: str = self.json["choices"][0]["message"]["content"]
        return answer

    @property
    def events(self) -> list[Any]:
        return list(read_events(self.body))

    @property
    def error(self) -> Any:
        return self.json["error"]


def read_events(body: bytes) -> Iterator[Any]:
    """The JSON events of a stream, which must end with ``[DONE]``."""
    blocks = [block for block in body.decode().split("\n\n") if block]
    assert blocks[-1] == "data: [DONE]", body
    for block in blocks[:-1]:
        if not block.startswith(":"):
            yield json.loads(block.removeprefix("data: "))


def ask(content: Any, **fields: Any) -> bytes:
    """The body of a request."""
    is_conversation = isinstance(content, list) and content and "role" in content[0]
    messages = content if is_conversation else [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, **fields}).encode()


def noise_png(seed: int, size: tuple[int, int] = (60, 90)) -> bytes:
    """A picture like no other."""
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def picture_part(data: bytes) -> dict[str, Any]:
    """A picture as OpenAI's API takes it."""
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)
