"""A model hub on this machine: as much of its HTTP interface as downloads and logins need."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest

__all__ = ["COMMIT", "Hub", "point_at", "run_hf", "serve_hub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_this_machine"


class Hub(http.server.ThreadingHTTPServer):
    """The server and what it has.

    Attributes:
        repositories: Directories by the ids under which they are served, at `COMMIT`.
        refusals: Status and error code by the ids that only those get who logged in.
        unwell: Whether an error comes instead of its files, for now.
    """

    request_queue_size = 64  # downloads come by several connections at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Path] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.unwell = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/oauth/device":
            where = {"verification_uri": f"{self.server.url}/device", "user_code": "ABCD"}
            self._reply_json({"device_code": "0", "interval": 0, "expires_in": 9, **where})
        else:
            self._reply_json({"access_token": TOKEN})

    def _answer(self) -> None:
        path = urlsplit(self.path).path.removeprefix("/api/models").lstrip("/")
        name, rest = "/".join(path.split("/")[:2]), path.split("/")[2:]
        logged_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "api/whoami-v2":
            self._reply_json({"name": "somebody"})
        elif name in self.server.refusals and not logged_in:
            status, code = self.server.refusals[name]
            self._reply(status, b"{}", {"X-Error-Code": code})
        elif name not in self.server.repositories:
            self._reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif not rest:
            page = self.server.repositories[name] / "README.md"
            self._reply(200, page.read_bytes() if page.exists() else b"", {})
        elif rest[1] not in ("main", COMMIT):
            self._reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._give(self.server.repositories[name], rest)

    def _give(self, folder: Path, rest: list[str]) -> None:
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if rest[0] == "revision":
            self._reply_json({"id": folder.name, "sha": COMMIT})
        elif rest[0] == "tree":
            self._reply_json([_entry(file, folder) for file in files])
        elif self.server.unwell and self.command == "GET":
            self._reply(418, b"{}", {})
        elif (file := folder.joinpath(*rest[2:])) in files:
            headers = {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT}
            self._reply(200, file.read_bytes(), headers)
        else:
            self._reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _reply_json(self, content: object) -> None:
        self._reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep the test output quiet."""


def _entry(file: Path, folder: Path) -> dict[str, object]:
    path, size = file.relative_to(folder).as_posix(), file.stat().st_size
    return {"type": "file", "path": path, "size": size, "oid": _digest(file)}


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serve_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub without repositories, at which the hub's library looks, with an empty ``HF_HOME``."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.05,), daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(home / "stored_tokens"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    point_at(monkeypatch, hub.url)
    yield hub
    hub.shutdown()
    hub.server_close()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make ``endpoint`` the hub of this process, as ``HF_ENDPOINT`` does before the import."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


def run_hf(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of the command ``hf`` in this process, whose hub is the one on this machine.

    ``HF_HUB_OFFLINE=0`` before it is heeded.
    """
    from huggingface_hub.cli.hf import main

    with monkeypatch.context() as inside:
        if words[0] == "HF_HUB_OFFLINE=0":
            inside.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            words = words[1:]
        assert words[0] == "hf"
        inside.setattr(sys, "argv", words)
        try:
            main()
        except SystemExit as leaving:
            return int(leaving.code or 0)
    return 0
