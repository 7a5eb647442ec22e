"""Put a server under load that is not always polite, and count what became of every request.

    python benchmarks/serving_load.py ENGINE_DIR --pictures models/small_scenes/scenes --output FILE

Clients ask about pictures, stream or not, hang up at random moments, and send bodies that are
malformed or too large. Every answer is compared with the one that was given to a single client
before. What the clients saw is compared with the server's own counts, and its memory after the
first hundred requests with that at the end. Then it is asked to stop while all are waiting.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUESTIONS = ("What colour is the largest figure?", "How many figures are there?",
             "Describe everything from left to right.")  # fmt: skip
WARM = 100
TOTALS = [f'divprune_requests_total{{status="{s}"}}' for s in ("200", "400", "413", "429", "499")]
MAX_TOKENS = 32


@dataclass
class Server:
    process: subprocess.Popen[str]
    port: int

    @classmethod
    def start(cls, engine_dir: Path, *arguments: object) -> Server:
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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("POST", "/v1/chat/completions", body)
        return connection.getresponse()

    def metrics(self) -> dict[str, float]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
                for line in lines if not line.startswith("#")}  # fmt: skip

    def rss(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Tally:
    expected: dict[tuple[str, str], str]
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, status: str) -> None:
        with self.lock:
            self.statuses[status] += 1

    def answered(self, key: tuple[str, str], text: str, answer_id: str, tokens: int) -> None:
        with self.lock:
            self.ids[answer_id] += 1
            self.tokens += tokens
            if text != self.expected[key]:
                self.wrong.append(f"{key}: {text!r} instead of {self.expected[key]!r}")


def body_of(picture: bytes, question: str, stream: bool = False) -> bytes:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    fields: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    fields["max_tokens"] = MAX_TOKENS
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields).encode()


def read_answer(response: http.client.HTTPResponse, stream: bool) -> tuple[str, str, int]:
    """Text, id and number of tokens."""
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


def ask(server: Server, pictures: dict[str, bytes], tally: Tally, dice: random.Random) -> None:
    key = (dice.choice(sorted(pictures)), dice.choice(QUESTIONS))
    stream = dice.random() < 0.5
    body = body_of(pictures[key[0]], key[1], stream)
    while True:
        response = server.post(body)
        if response.status == 200:
            tally.answered(key, *read_answer(response, stream))
            tally.saw("200")
            return
        told = json.loads(response.read())
        tally.saw(str(response.status))
        assert response.status == 429, told
        time.sleep(min(float(response.headers["Retry-After"]), 1 + dice.random()))


def hang_up(server: Server, pictures: dict[str, bytes], tally: Tally, dice: random.Random) -> None:
    """Send a request, or a part of one, and close the connection at some moment."""
    body = body_of(dice.choice(sorted(pictures.values())), QUESTIONS[2], dice.random() < 0.5)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
    whole = head.encode() + b"\r\n\r\n" + body
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(whole[: dice.randrange(len(whole) // 2, len(whole) + len(whole) // 2)])
        time.sleep(dice.random() * 0.3)
        # Reset: the server may be writing.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tally.saw("hung up")


def malformed(
    server: Server, pictures: dict[str, bytes], tally: Tally, dice: random.Random
) -> None:
    good = body_of(dice.choice(sorted(pictures.values())), "Hello", dice.random() < 0.5)
    bad = [good[:-5], b"", b"[" * 50_000, good.replace(b'"user"', b'"nobody"'),
           good.replace(b"iVBORw0", b"AAAAAAA"), b'{"messages": NaN}', b"\xff" * 100]  # fmt: skip
    response = server.post(dice.choice(bad))
    error = json.loads(response.read())["error"]
    assert response.status == 400, (response.status, error)
    tally.saw("400")


def oversized(server: Server, _: dict[str, bytes], tally: Tally, dice: random.Random) -> None:
    try:
        response = server.post(b"x" * (2**20 + dice.randrange(1, 2**20)))
        json.loads(response.read())
        assert response.status == 413, response.status
    except (ConnectionError, http.client.HTTPException):
        tally.saw("413 unread")
        return
    tally.saw("413")


KINDS = (ask,) * 75 + (hang_up,) * 11 + (malformed,) * 9 + (oversized,) * 5


def put_under_load(server: Server, pictures: dict[str, bytes], tally: Tally,
                   clients: int, requests: int, seed: int) -> dict[str, Any]:  # fmt: skip
    """Send the requests; memory in MiB after the first hundred and at the end."""
    left = iter(range(requests))
    marks: dict[int, int] = {}
    failures: list[str] = []
    lock = threading.Lock()

    def work(client: int) -> None:
        dice = random.Random(seed * 1000 + client)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            if number in (WARM, requests // 2):
                marks[number] = server.rss()
            try:
                dice.choice(KINDS)(server, pictures, tally, dice)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")

    start = time.monotonic()
    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    sizes = {str(number): size for number, size in sorted(marks.items())} | {"end": server.rss()}
    return {
        "seconds": round(seconds, 1),
        "failures": failures,
        "rss_mib": {name: round(size / 2**20, 1) for name, size in sizes.items()},
    }


def answers_alone(server: Server, pictures: dict[str, bytes]) -> dict[tuple[str, str], str]:
    return {
        (name, question): read_answer(server.post(body_of(picture, question)), False)[0]
        for name, picture in pictures.items()
        for question in QUESTIONS
    }


def compare_metrics(server: Server, before: dict[str, float], tally: Tally) -> dict[str, Any]:
    """What clients saw beside what the server counted, once it has nothing left to do."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        now = server.metrics()
        busy = now["divprune_requests_running"] + now["divprune_requests_waiting"]
        sent = sum(now.get(name, 0) - before.get(name, 0) for name in TOTALS)
        if not busy and sent == tally.statuses.total():
            break
        time.sleep(0.2)
    counted = {
        status: int(now.get(name, 0) - before.get(name, 0))
        for status in ("200", "400", "413", "429", "499")
        for name in [f'divprune_requests_total{{status="{status}"}}']
    }
    made = now["divprune_generated_tokens_total"] - before["divprune_generated_tokens_total"]
    return {
        "clients": dict(sorted(tally.statuses.items())),
        "server": counted,
        "tokens": {"clients": tally.tokens, "server": int(made)},
        "left": {name: now[f"divprune_requests_{name}"] for name in ("running", "waiting")},
    }


def terminate_under_load(
    server: Server, pictures: dict[str, bytes], clients: int
) -> dict[str, Any]:
    """SIGTERM while every client waits for an answer: what each of them got."""
    got: Counter[str] = Counter()
    sent = threading.Barrier(clients + 1)

    def work(client: int) -> None:
        body = body_of(sorted(pictures.values())[client % len(pictures)], QUESTIONS[2])
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        connection.request("POST", "/v1/chat/completions", body)
        sent.wait()
        try:
            response = connection.getresponse()
            told = json.loads(response.read())
            got[str(response.status) if "choices" in told or "error" in told else "nothing"] += 1
        except (OSError, http.client.HTTPException, ValueError) as error:
            got[type(error).__name__] += 1

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    sent.wait()
    while (now := server.metrics())["divprune_requests_waiting"] == 0 and now[
        "divprune_requests_running"
    ]:
        time.sleep(0.001)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    return {"answers": dict(sorted(got.items())), "exit_code": server.process.wait(60)}


def load_test(engine_dir: Path, pictures: dict[str, bytes], *, clients: int, requests: int,
              seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """The whole test."""
    server = Server.start(engine_dir, "--max-queue", 12, "--max-body-mib", 1, "--threads", 1)
    try:
        tally = Tally(answers_alone(server, pictures))
        before = server.metrics()
        load = put_under_load(server, pictures, tally, clients, requests, seed)
        counts = compare_metrics(server, before, tally)
        end = terminate_under_load(server, pictures, min(clients, 12))
    finally:
        server.process.kill()
    twice = sum(count - 1 for count in tally.ids.values())
    return {"clients": clients, "requests": requests, **load, "wrong_answers": tally.wrong,
            "answered_twice": twice, "counts": counts, "sigterm": end}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("models/small_scenes/scenes"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    pictures = {path.name: path.read_bytes() for path in sorted(options.pictures.glob("*.png"))}
    report = load_test(options.engine_dir, pictures, clients=options.clients,
                       requests=options.requests, seed=options.seed)  # fmt: skip
    text = json.dumps(report, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
