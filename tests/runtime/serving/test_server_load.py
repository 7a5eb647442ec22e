"""``divprune-bench --serve`` against a real server, ours and one of another make."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from divprune.runtime.cli.bench import main
from tests.runtime.serving.serving_process import ServingProcess

FEW = ["--iters", "2", "--warmup", "1", "--max-new-tokens", "6"]


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    code = main([*arguments, *FEW, "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)["rows"]


def test_own_server_is_measured_with_its_queue(
    server: ServingProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    answered = server.metric("requests_total", '{status="200"}')
    rows = report(capsys, "--serve", server.url, "--clients", "1,4")
    assert [(row["clients"], row["requests"], row["failures"]) for row in rows] == [
        (1, 2, {}),
        (4, 8, {}),
    ]
    for row in rows:
        assert row["ttft_ms"]["p50"] > 0
        assert row["tpot_ms"]["p50"] > 0
        assert row["queue_ms"]["p50"] >= 0
        assert row["tokens_per_second"] > 0
        assert row["prompt_tokens"] > 0
    assert rows[1]["queue_ms"]["p50"] > rows[0]["queue_ms"]["p50"]
    assert server.metric("requests_total", '{status="200"}') == answered + 3 + 12


def test_table_has_a_line_for_each_number_of_clients(
    server: ServingProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--serve", f"{server.url}/v1/", "--clients", "1,2", *FEW]) == 0
    out, err = capsys.readouterr()
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["clients", "answers"]
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert "2 clients" in err


class _Other(http.server.BaseHTTPRequestHandler):
    """A server that knows nothing of ours: no usage, and busy at first."""

    busy = 1

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "other"
        if type(self).busy:
            type(self).busy -= 1
            self._send(503, {"error": {"message": "loading"}})
            return
        self.send_response(200)
        self.end_headers()
        for piece in ("a", "b", "c"):
            event = {"choices": [{"delta": {"content": piece}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status: int, data: dict) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(data).encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def other() -> Iterator[str]:
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Other)
    threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{listener.server_port}"
    listener.shutdown()
    listener.server_close()


def test_server_of_another_make_is_measured_by_its_pieces(
    other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = report(capsys, "--serve", other, "--clients", "1")
    assert row["requests"] == 2
    assert row["queue_ms"] is None
    assert row["prompt_tokens"] is None


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--serve", "localhost:8000"], "address of a server"),
        (["--serve", "http://127.0.0.1:9"], "no server"),
        (["--serve", "http://127.0.0.1:9", "--clients", "1,none"], "--clients"),
        (["--serve", "http://127.0.0.1:9", "--clients", "0"], "--clients"),
        (["--serve", "http://127.0.0.1:9", "--output", "a.json"], "--output"),
        (["somewhere", "--serve", "http://127.0.0.1:9"], "without ENGINE_DIR"),
        ([], "nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
