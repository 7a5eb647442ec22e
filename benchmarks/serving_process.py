"""A real ``divprune-serve`` in a process of its own, for the benchmarks that ask it."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MAX_TOKENS", "Server", "body_of", "read_answer"]

MAX_TOKENS = 32


@dataclass
class Server:
    """A running server.

    Attributes:
        process: Its process.
        port: Where it listens on 127.0.0.1.
    """

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, engine_dir: Path, *arguments: object) -> Server:
        """Start one on a free port, and wait until it listens."""
        words = [sys.executable, "-m", "divprune.runtime.cli.serve", engine_dir, "--port", 0]
        process = subprocess.Popen(
            [*map(str, [*words, *arguments])], stderr=subprocess.PIPE, text=True
        )
        assert process.stderr is not None
        for line in process.stderr:
            if match := re.search(r" at http://[\d.]+:(\d+)$", line.rstrip()):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                return cls(process, int(match[1]))
        raise RuntimeError("the server did not start")

    def post(self, body: bytes) -> http.client.HTTPResponse:
        """The response to a chat request; its body is not read yet."""
        return self.send(body).getresponse()

    def send(self, body: bytes) -> http.client.HTTPConnection:
        """The connection over which a chat request has been sent."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/v1/chat/completions", body)
        return connection

    def metrics(self) -> dict[str, float]:
        """What ``/metrics`` says, by name and label."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in lines if not line.startswith("#")}  # fmt: skip

    def rss(self) -> int:
        """Resident memory in bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


def body_of(picture: bytes, question: str, stream: bool = False) -> bytes:
    """A chat request about one picture."""
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    fields["max_tokens"] = MAX_TOKENS
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields).encode()


def read_answer(response: http.client.HTTPResponse, stream: bool) -> tuple[str, str, int]:
    """Text, id and number of tokens of a whole answer.

    Raises:
        AssertionError: if a stream breaks off, or ends in an error.
    """
    if not stream:
        data = json.loads(response.read())
        return (
            data["choices"][0]["message"]["content"],
            data["id"],
            data["usage"]["completion_tokens"],
        )
    text, answer_id, tokens = "", "", 0
    blocks = response.read().decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""], blocks[-3:]
    for block in blocks[:-2]:
        if block.startswith(":"):
            continue
        event = json.loads(block.removeprefix("data: "))
        assert "error" not in event, event
        answer_id = event["id"]
        if event["choices"]:
            text += event["choices"][0]["delta"].get("content", "")
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    return text, answer_id, tokens
