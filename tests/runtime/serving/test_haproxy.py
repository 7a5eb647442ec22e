"""The configuration of docs/scaling.md: two servers behind HAProxy."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.serving.serving_process import ServingProcess, noise_png, picture_part

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

SECONDS = 60
CHECKED_S = 5
MODEL = "fleet"
QUESTION = [picture_part(noise_png(0)), {"type": "text", "text": "What is this?"}]
CLIENTS = 6


class Fleet(ServingProcess):
    """Talks to two servers through the proxy."""

    def __init__(self, engine_dir: Path, config: Path, text: str) -> None:
        arguments = ("--trusted-proxy", "127.0.0.1", "--model-name", MODEL)
        self.boards = [ServingProcess(engine_dir, *arguments) for _ in range(2)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        text, binds = re.subn(r"bind :\d+", f"bind 127.0.0.1:{self.port}", text)
        addresses = iter(f"127.0.0.1:{board.port}" for board in self.boards)
        text, servers = re.subn(r"10\.0\.0\.\d+:\d+", lambda _: next(addresses), text)
        assert (binds, servers) == (1, 2)
        config.write_text(text)
        self.process = subprocess.Popen(
            ["haproxy", "-db", "-f", config], stderr=subprocess.PIPE, text=True
        )
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        end = time.monotonic() + SECONDS
        while not self._listens():
            assert self.process.poll() is None, "HAProxy refuses the configuration"
            assert time.monotonic() < end
            time.sleep(0.05)
        time.sleep(CHECKED_S)  # servers count as up until the checks say otherwise

    def _listens(self) -> bool:
        try:
            return self.get("/health/ready").status == 200
        except OSError:
            return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for board in self.boards:
            board.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def fleet(
    root: Path, engine_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    if shutil.which("haproxy") is None:
        pytest.skip("HAProxy is not installed")
    document = (root / "docs" / "scaling.md").read_text()
    (text,) = re.findall(r"^```haproxy\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    running = Fleet(engine_dir, tmp_path_factory.mktemp("haproxy") / "haproxy.cfg", text)
    yield running
    running.close()


def answered(board: ServingProcess) -> float:
    return board.metric("requests_total", '{status="200"}')


def test_answers_are_those_of_a_server_alone_and_come_from_both(
    fleet: Fleet, server: ServingProcess
) -> None:
    expected = server.chat(QUESTION, max_tokens=8).answer
    replies: list[str] = []

    def work(stream: bool) -> None:
        replies.append(fleet.chat(QUESTION, max_tokens=8, stream=stream, model=MODEL).answer)

    threads = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert replies == [expected] * 12
    assert all(answered(board) for board in fleet.boards)
    assert fleet.chat(QUESTION, n=2).error["code"] == "unsupported_parameter"


def test_board_that_dies_under_load_costs_only_what_it_had(fleet: Fleet) -> None:
    expected = fleet.chat(QUESTION, max_tokens=40).answer
    outcomes: Counter[str] = Counter()
    last: Counter[str] = Counter()
    start = time.monotonic()

    def work() -> None:
        while (now := time.monotonic() - start) < 6:
            try:
                reply = fleet.chat(QUESTION, max_tokens=40)
                outcome = str(reply.status)
                assert reply.status != 200 or reply.answer == expected
            except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
                outcome = type(error).__name__
            outcomes[outcome] += 1
            last[outcome] += now > 3

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    fleet.boards[0].stop(signal.SIGKILL)
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a request was met with silence"
    failed = outcomes.total() - outcomes["200"]
    assert outcomes["200"] > 10
    # What the board was answering, and what was on the way to it when it died.
    assert failed <= CLIENTS, outcomes
    assert set(+last) == {"200"}
