"""Put a server under load that is not always polite, and count what became of every request.

    python benchmarks/serving_load.py ENGINE_DIR --output benchmarks/results/serving-load.json
    python benchmarks/serving_table.py

Clients ask about pictures, stream or not, hang up at random moments, and send bodies that are
malformed or too large. Every answer is compared with the one that was given to a single client
before. What the clients saw is compared with the server's own counts, and its memory after the
first hundred requests with that at the end. Then all ask again, and the server is terminated in
the middle. The exit code is 1 if anything of it was not as it must be.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.serving_process import MAX_TOKENS, Server, body_of, read_answer

QUESTIONS = ("What colour is the largest figure?", "How many figures are there?",
             "Describe everything from left to right.")  # fmt: skip
WARM = 100
STATUSES = ("200", "400", "413", "429", "499")
MOST_GROWTH_MIB = 8


@dataclass
class Tally:
    expected: dict[tuple[str, str], str]
    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    ids: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, status: str) -> None:
        with self.lock:
            self.statuses[status] += 1

    def answered(
        self, key: tuple[str, str], text: str, answer_id: str, tokens: int, seconds: float
    ) -> None:
        with self.lock:
            self.ids[answer_id] += 1
            self.tokens += tokens
            self.seconds += seconds
            if text != self.expected[key]:
                self.wrong.append(f"{key}: {text!r} instead of {self.expected[key]!r}")

    def seconds_an_answer(self) -> float:
        with self.lock:
            return self.seconds / self.ids.total() if self.ids else 0.1


def ask(server: Server, pictures: dict[str, bytes], tally: Tally, dice: random.Random) -> None:
    key = (dice.choice(sorted(pictures)), dice.choice(QUESTIONS))
    stream = dice.random() < 0.5
    body = body_of(pictures[key[0]], key[1], stream)
    while True:
        start = time.monotonic()
        response = server.post(body)
        if response.status == 200:
            tally.answered(key, *read_answer(response, stream), time.monotonic() - start)
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
        time.sleep(dice.random() * 2 * tally.seconds_an_answer())
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
            if number and number % WARM == 0:
                marks[number] = server.rss()
            try:
                dice.choice(KINDS)(server, pictures, tally, dice)
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")

    start = time.monotonic()
    together(work, clients)
    seconds = time.monotonic() - start
    sizes = {str(number): size for number, size in sorted(marks.items())} | {"end": server.rss()}
    return {
        "seconds": round(seconds, 1),
        "failures": failures,
        "rss_mib": {name: round(size / 2**20, 1) for name, size in sizes.items()},
        "growth_after_the_first_100_mib": round((server.rss() - marks[WARM]) / 2**20, 1),
    }


def together(work: Any, clients: int) -> None:
    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def answers_alone(server: Server, pictures: dict[str, bytes]) -> dict[tuple[str, str], str]:
    return {
        (name, question): read_answer(server.post(body_of(picture, question)), False)[0]
        for name, picture in pictures.items()
        for question in QUESTIONS
    }


def compare_metrics(server: Server, before: dict[str, float], tally: Tally) -> dict[str, Any]:
    """What clients saw beside what the server counted, once it has nothing left to do."""
    names = {status: f'divprune_requests_total{{status="{status}"}}' for status in STATUSES}
    end = time.monotonic() + 30
    while True:
        now = server.metrics()
        busy = now["divprune_requests_running"] + now["divprune_requests_waiting"]
        counted = {s: int(now.get(name, 0) - before.get(name, 0)) for s, name in names.items()}
        done = not busy and sum(counted.values()) == tally.statuses.total()
        if done or time.monotonic() > end:
            break
        time.sleep(0.2)
    made = now["divprune_generated_tokens_total"] - before["divprune_generated_tokens_total"]
    return {
        "clients": dict(sorted(tally.statuses.items())),
        "server": counted,
        "tokens": {"clients": tally.tokens, "server": int(made)},
        "left": {name: now[f"divprune_requests_{name}"] for name in ("running", "waiting")},
    }


def metrics_agree(counts: dict[str, Any]) -> bool:
    """Whether the server counted what the clients saw.

    A client that hangs up late has had its answer or its refusal sent; the server counts these by
    their status, and every other client that hung up as 499.
    """
    clients, server = Counter(counts["clients"]), Counter(counts["server"])
    late_answers = server["200"] - clients["200"]
    late = late_answers + server["429"] - clients["429"]
    unseen_tokens = counts["tokens"]["server"] - counts["tokens"]["clients"]
    return (
        server["400"] == clients["400"]
        and server["413"] == clients["413"] + clients["413 unread"]
        and 0 <= late_answers <= late <= clients["hung up"] == server["499"] + late
        and 0 <= unseen_tokens <= MAX_TOKENS * late_answers
        and not any(counts["left"].values())
    )


def terminate_under_load(server: Server, pictures: dict[str, bytes], tally: Tally,
                         clients: int, seed: int) -> dict[str, Any]:  # fmt: skip
    """SIGTERM while all clients go on asking: what became of the answers that were promised."""
    got: Counter[str] = Counter()
    complete: list[float] = []
    wrong: list[str] = []
    asked_at, promised = float("inf"), 0.0

    def work(client: int) -> None:
        dice = random.Random(seed * 1000 + 500 + client)
        outcome = ""
        while outcome not in ("told to go", "not let in"):
            key = (dice.choice(sorted(pictures)), dice.choice(QUESTIONS))
            body = body_of(pictures[key[0]], key[1], dice.random() < 0.5)
            outcome, text, sent = last_ask(server, body)
            # The server had answered a later request before it was told to go.
            lost = outcome == "not let in" and sent < asked_at
            got["lost" if lost else outcome] += 1
            if outcome == "complete":
                complete.append(time.monotonic())
                if text != tally.expected[key]:
                    wrong.append(f"{key}: {text!r}")

    def terminate() -> None:
        nonlocal asked_at, promised
        while len(complete) < 3 * clients:
            time.sleep(0.005)
        while not promised:  # all clients may be between two requests
            asked_at = time.monotonic()
            now = server.metrics()
            promised = now["divprune_requests_running"] + now["divprune_requests_waiting"]
        server.process.send_signal(signal.SIGTERM)

    ending = threading.Thread(target=terminate)
    ending.start()
    together(work, clients)
    ending.join()
    return {
        "promised": int(promised),
        "complete_since": sum(moment > asked_at for moment in complete),
        "outcomes": dict(sorted(got.items())),
        "wrong_answers": wrong,
        "exit_code": server.process.wait(60),
    }


def last_ask(server: Server, body: bytes) -> tuple[str, str, float]:
    """What became of a request to a server that may be going, its answer, when it was sent."""
    sent = float("inf")
    try:
        connection = server.send(body)
        sent = time.monotonic()
        response = connection.getresponse()
    except (OSError, http.client.HTTPException):
        return "not let in", "", sent  # no byte of an answer came
    stream = json.loads(body).get("stream", False)
    try:
        if response.status == 200:
            return "complete", read_answer(response, stream)[0], sent
        told = json.loads(response.read())["error"]["code"]
    except (OSError, http.client.HTTPException, AssertionError, ValueError, KeyError) as error:
        return f"broken off: {type(error).__name__}", "", sent
    if response.status == 503:
        return "told to go", "", sent
    time.sleep(0.01)
    return f"{response.status} {told}", "", sent


def load_test(engine_dir: Path, pictures: dict[str, bytes], *, clients: int, requests: int,
              seed: int = 0) -> dict[str, Any]:  # fmt: skip
    """The whole test, and what of it was as it must be."""
    server = Server.start(engine_dir, "--max-queue", 12, "--max-body-mib", 1, "--threads", 1)
    try:
        tally = Tally(answers_alone(server, pictures))
        before = server.metrics()
        load = put_under_load(server, pictures, tally, clients, requests, seed)
        counts = compare_metrics(server, before, tally)
        end = terminate_under_load(server, pictures, tally, clients, seed)
    finally:
        server.process.kill()
    twice = sum(count - 1 for count in tally.ids.values())
    once = tally.statuses.total() - tally.statuses["429"]  # which are asked again
    checks = {
        "no request was lost": not load["failures"] and once == requests,
        "none was answered twice": twice == 0 and len(tally.ids) == tally.statuses["200"],
        "every answer is the one given alone": not tally.wrong and not end["wrong_answers"],
        "the server counted what the clients saw": metrics_agree(counts),
        "memory does not grow": load["growth_after_the_first_100_mib"] < MOST_GROWTH_MIB,
        "SIGTERM lost no answer that was promised": 0 < end["promised"] <= end["complete_since"]
        and not any(outcome.startswith(("broken", "lost")) for outcome in end["outcomes"])
        and end["exit_code"] == 0,
    }
    return {"clients": clients, "requests": requests, **load, "wrong_answers": tally.wrong,
            "answered_twice": twice, "counts": counts, "sigterm": end,
            "checks": checks}  # fmt: skip


def main() -> int:
    from benchmarks.export_figures import machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--pictures", type=Path, default=Path("models/small_scenes/scenes"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.requests <= WARM:
        parser.error(f"--requests: more than {WARM} are needed")
    pictures = {path.name: path.read_bytes() for path in sorted(options.pictures.glob("*.png"))}
    report = load_test(options.engine_dir, pictures, clients=options.clients,
                       requests=options.requests, seed=options.seed)  # fmt: skip
    report = {"machine": machine(), "engine": options.engine_dir.name, **report}
    text = json.dumps(report, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text, end="")
    return 0 if all(report["checks"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
