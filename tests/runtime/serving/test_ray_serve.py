"""The application on Ray Serve, two replicas on this machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.errors import OptionError
from divprune.runtime.serving.ray_app import RayOptions
from tests.runtime.serving.conftest import KEYS
from tests.runtime.serving.serving_process import (
    Reply,
    ServingProcess,
    noise_png,
    picture_part,
)

# The clients of the server's tests are put to the replicas as well.
from tests.runtime.serving.test_clients import (
    PICTURE,
    expected,  # noqa: F401
    test_langchain,  # noqa: F401
    test_openai_for_node,  # noqa: F401
    test_openai_for_python,  # noqa: F401
)

SECONDS = 150
QUESTION = [picture_part(noise_png(0)), {"type": "text", "text": "What is this?"}]
RUN = """
import json, sys, time
import ray
from ray import serve
from divprune.runtime.serving.ray_app import build

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
serve.run(build(json.loads(sys.argv[1])))
print("serving", flush=True)
sys.stdin.read()
serve.shutdown()
"""


class RayServer(ServingProcess):
    """Talks to a server that Ray runs."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = Path(arguments["engine_dir"]).name
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(arguments), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"DIVPRUNE_API_KEY": KEYS[0]},
        )
        self.log: list[str] = []
        timer = threading.Timer(SECONDS, self.kill)
        timer.start()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if line == "serving\n":
                break
        else:
            raise AssertionError("".join(self.log)[-3000:])
        timer.cancel()
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def request(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str] | None = None
    ) -> Reply:
        key = {"Authorization": f"Bearer {KEYS[0]}"}
        return super().request(method, path, body, {**key, **(headers or {})})

    def members(self) -> Iterator[tuple[int, bytes]]:
        """Processes of the cluster and what they call themselves."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.getsid(int(entry.name)) == self.process.pid:
                        yield int(entry.name), (entry / "cmdline").read_bytes()
                except OSError:
                    continue

    def replicas(self) -> list[int]:
        return [pid for pid, title in self.members() if b"ServeReplica" in title]

    def kill(self) -> None:
        for pid, _ in [*self.members()]:
            os.kill(pid, signal.SIGKILL)
        self.process.kill()


@pytest.fixture(scope="module")
def ray_server(engine_dir: Path) -> Iterator[RayServer]:
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed")
    pytest.importorskip("onnxruntime")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    server = RayServer(
        {
            "engine_dir": str(engine_dir),
            "min_replicas": 2,
            "max_replicas": 2,
            "cpus": 0.2,
            "threads": 1,
        }
    )
    yield server
    server.kill()


@pytest.fixture
def arguments(ray_server: RayServer, expected: Any) -> list[str]:  # noqa: F811
    """For the clients."""
    return [ray_server.url, KEYS[0], ray_server.model, PICTURE, expected.text[2:4]]


def test_answers_and_errors_are_those_of_the_server(
    ray_server: RayServer, server: ServingProcess
) -> None:
    for fields in ({}, {"stream": True}, {"keep": 0.05}):
        here = ray_server.chat(QUESTION, max_tokens=8, **fields)
        there = server.chat(QUESTION, max_tokens=8, **fields)
        assert here.answer == there.answer
    assert ray_server.get("/v1/models").json["data"][0]["id"] == ray_server.model
    assert ray_server.chat(QUESTION, key="another").status == 401
    reply = ray_server.chat(QUESTION, n=2)
    assert (reply.status, reply.error["code"]) == (400, "unsupported_parameter")
    assert ray_server.get("/").headers["content-security-policy"].startswith("default-src 'none'")


def test_replica_that_dies_under_load_costs_only_what_it_had(ray_server: RayServer) -> None:
    right = ray_server.chat(QUESTION, max_tokens=40).answer
    before = ray_server.replicas()
    assert len(before) == 2
    statuses: Counter[str] = Counter()
    end = time.monotonic() + 8

    def work() -> None:
        while time.monotonic() < end:
            try:
                reply = ray_server.chat(QUESTION, max_tokens=40)
            except OSError as error:
                statuses[type(error).__name__] += 1
                continue
            statuses[str(reply.status)] += 1
            if reply.status == 200:
                assert reply.answer == right

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    os.kill(before[0], signal.SIGKILL)
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "a request was met with silence"
    failed = sum(count for status, count in statuses.items() if status != "200")
    assert statuses["200"] > failed
    assert failed <= 6, statuses


def test_arguments_are_read_as_serve_run_gives_them() -> None:
    options = RayOptions.read({"engine_dir": "/m", "max_replicas": "4", "cpus": "0.5"})
    assert (options.max_replicas, options.cpus, options.gpus) == (4, 0.5, 0.0)
    for wrong in ({}, {"engine_dir": "/m", "replicas": "2"}, {"engine_dir": "/m", "cpus": "many"}):
        with pytest.raises(OptionError):
            RayOptions.read(wrong)
