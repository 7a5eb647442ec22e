"""What docs/serving.md says about running the server: every block of it, really run."""

from __future__ import annotations

import configparser
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.serving.serving_process import ServingProcess, ask, noise_png, until

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")

DOCUMENT = Path(__file__).parents[3] / "docs" / "serving.md"
NAME = "llava-1.5-7b-keep0.1"
KEY = "a-key-of-the-deployment"


def block(start: str) -> str:
    """The fenced block whose text begins like this."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = re.findall(rf"```\w+\n({re.escape(start)}.*?)```", text, re.DOTALL)
    return found


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program} on the path (apt-get install {program})")


def bash(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_question_with_curl_is_answered(engine_dir: Path, tmp_path: Path) -> None:
    need("curl")
    (tmp_path / "photo.jpg").write_bytes(noise_png(0))
    with ServingProcess(engine_dir, "--model-name", NAME) as server:
        command = block("curl http").replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        answer = json.loads(bash(command, tmp_path))
    assert answer["model"] == NAME
    assert answer["choices"][0]["message"]["content"]
    assert answer["divprune"]["images"][0]["num_kept"] > 0


def test_key_in_the_environment_is_asked_for(engine_dir: Path, tmp_path: Path) -> None:
    need("curl", "openssl")
    port = free_port()
    export, serve, curl = block("export DIVPRUNE_API_KEY").splitlines()
    program = f"{sys.executable} -m divprune.runtime.cli.serve"
    serve = serve.replace("divprune-serve", program).replace(NAME, str(engine_dir))
    curl = curl.replace("8000", str(port)).replace(
        "curl ", "curl -sf --retry-connrefused --retry 60 --retry-delay 1 "
    )
    refused = f"curl -s -o /dev/null -w '%{{http_code}}' http://127.0.0.1:{port}/v1/models"
    script = (
        f"{export}\n{serve} --port {port} --quiet & server=$!\ntrap 'kill $server' EXIT\n"
        f"{curl}\necho\n{refused}"
    )
    models, status = bash(script, tmp_path).splitlines()
    assert json.loads(models)["data"][0]["id"] == engine_dir.name
    assert status == "401"


def unit_file() -> tuple[str, configparser.ConfigParser]:
    text = block("[Unit]")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    return text, unit


def test_unit_is_valid_and_its_paths_are_those_of_the_text(
    engine_dir: Path, tmp_path: Path
) -> None:
    need("systemd-analyze")
    text, unit = unit_file()
    program = tmp_path / "divprune-serve"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / "divprune-serve.service"
    file.write_text(text.replace("/opt/divprune/bin/divprune-serve", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if file.name in line]
    assert (done.returncode, ours) == (0, []), done.stderr
    assert unit["Service"]["LoadCredential"] == "keys:/etc/divprune/keys"
    assert int(unit["Service"]["TimeoutStopSec"]) > 30 + 10  # --grace, and uvicorn's slack


def test_command_of_the_unit_serves_and_ends_orderly(engine_dir: Path, tmp_path: Path) -> None:
    _, unit = unit_file()
    (tmp_path / "keys").write_text(f"{KEY}\n")
    command = unit["Service"]["ExecStart"].replace("${CREDENTIALS_DIRECTORY}", str(tmp_path))
    program, directory, *arguments = command.split()
    assert (program, directory) == ("/opt/divprune/bin/divprune-serve", f"/opt/models/{NAME}")
    port = free_port()
    words = [sys.executable, "-m", "divprune.runtime.cli.serve", str(engine_dir), *arguments]
    variable, _, folder = unit["Service"]["Environment"].partition("=")
    assert folder == f"/var/cache/{unit['Service']['CacheDirectory']}"
    environment = os.environ | {variable: str(tmp_path / "cache")}
    process = subprocess.Popen([*words, "--port", str(port)], env=environment)
    try:
        until(lambda: answers(port), 60)
        assert (tmp_path / "cache").is_dir()
    finally:
        process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().status == 200
    except ConnectionRefusedError:
        return False
    finally:
        connection.close()


@pytest.fixture(scope="module")
def proxied(
    engine_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServingProcess, int]]:
    """A server, and the port of HAProxy in front of it with the document's configuration."""
    need("haproxy", "openssl")
    folder, port = tmp_path_factory.mktemp("haproxy"), free_port()
    bash(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout key.pem"
        " -out cert.pem && cat cert.pem key.pem > vision.pem",
        folder,
    )
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    with ServingProcess(
        engine_dir, "--api-key-file", keys, "--trusted-proxy", "127.0.0.1"
    ) as server:
        text = block("defaults\n    mode http")
        for old, new in (
            ("bind :443", f"bind 127.0.0.1:{port}"),
            ("/etc/haproxy/vision.pem", str(folder / "vision.pem")),
            ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
        ):
            assert text.count(old) == 1
            text = text.replace(old, new)
        config = folder / "haproxy.cfg"
        config.write_text(text)
        haproxy = subprocess.Popen(["haproxy", "-db", "-f", config])
        try:
            until(lambda: fetch(port, "GET", "/health/ready").status == 200)
            yield server, port
        finally:
            haproxy.terminate()
            haproxy.wait(30)


def fetch(port: int, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    headers = {
        "Authorization": f"Bearer {KEY}",
        "Host": "vision.example",
        "Origin": "https://vision.example",
    }
    for _ in range(100):
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=context)
        try:
            connection.request(method, path, body, headers)
            return connection.getresponse()
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("the proxy did not start")


def test_proxy_finds_the_server_healthy_and_hands_the_page_on(
    proxied: tuple[ServingProcess, int],
) -> None:
    response = fetch(proxied[1], "GET", "/")
    assert response.status == 200
    assert "script-src 'sha256-" in response.headers["content-security-policy"]
    time.sleep(2.5)  # HAProxy's check has been made, and did not take the server out
    assert fetch(proxied[1], "GET", "/v1/models").status == 200


def test_stream_comes_through_the_proxy_piece_by_piece(
    proxied: tuple[ServingProcess, int],
) -> None:
    server, port = proxied
    body = ask("Tell me more", max_tokens=400, stream=True)
    response = fetch(port, "POST", "/v1/chat/completions", body)
    response.readline()
    assert server.metric("requests_running", key=KEY) == 1
    lines = response.read().decode().splitlines()
    assert lines[-2] == "data: [DONE]"


def test_client_of_the_proxy_that_goes_away_stops_its_answer(
    proxied: tuple[ServingProcess, int],
) -> None:
    server, port = proxied
    gone = server.metric("requests_total", '{status="499"}', KEY)
    response = fetch(
        port, "POST", "/v1/chat/completions", ask("More", max_tokens=1000, stream=True)
    )
    response.readline()
    response.close()
    until(lambda: server.metric("requests_total", '{status="499"}', KEY) == gone + 1)
