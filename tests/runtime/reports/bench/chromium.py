"""A page in headless Chromium, watched through the DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
TIMEOUT_S = 120

# Chromium talks over the file descriptors 3 and 4, which Python cannot give to a child.
_LAUNCH = """
import os, sys
read, write = (os.dup(int(number)) for number in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.set_inheritable(3, True)
os.set_inheritable(4, True)
os.execv(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip


class Page:
    """One tab: what it asked for, what its console said, and what it looks like.

    Attributes:
        requests: URLs that the page asked for, its own one and ``data:`` left out.
        problems: Warnings and errors of the console, and exceptions of scripts.
    """

    def __init__(self, read: int, write: int) -> None:
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._read = os.fdopen(read, "rb", buffering=0)
        self._write = os.fdopen(write, "wb", buffering=0)
        self._numbers = itertools.count(1)
        self._received = b""
        self._events: list[dict[str, Any]] = []
        self._url = ""
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        """Show a file and wait until nothing is loading any more."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests, self.problems = [], []
        self._url = path.as_uri()
        self._events.clear()
        self._call("Page.navigate", url=self._url)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive()
        # Two frames later everything that the layout asks for has been asked for.
        self.evaluate("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        for event in self._events:
            self._note(event["method"], event["params"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        options = {"awaitPromise": True, "returnByValue": True}
        result = self._call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG, not only what the window shows."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if url != self._url and not url.startswith("data:"):
                self.requests.append(url)
        elif method == "Log.entryAdded":
            if params["entry"]["level"] in ("warning", "error"):
                self.problems.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            if params["type"] in ("warning", "error", "assert"):
                self.problems.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            pass
        assert "result" in answer, answer
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            assert select.select([self._read], [], [], TIMEOUT_S)[0], "Chromium does not answer"
            data = self._read.read(1 << 20)
            assert data, "Chromium has gone away"
            self._received += data
        line, _, self._received = self._received.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self._events.append(message)
        return message


@contextmanager
def open_chromium(profile: Path) -> Iterator[Page]:
    """Start Chromium with an empty profile; it ends with the block."""
    assert CHROMIUM is not None
    (to_read, from_us), (from_it, to_write) = os.pipe(), os.pipe()
    command = [sys.executable, "-c", _LAUNCH, to_read, to_write, CHROMIUM, *_FLAGS]
    process = subprocess.Popen(
        [*map(str, command), f"--user-data-dir={profile}"],
        pass_fds=(to_read, to_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Page(from_it, from_us)
    finally:
        process.terminate()
        process.wait()
