"""What the server costs beside the API: time to first token, tokens/s, memory, start-up.

    python -m divprune.export.checkpoint.random --model llava-0.2b --output llava-0.2b
    divprune-export --model ./llava-0.2b --keep 0.1 --quant int4 --output 0.2b-int4
    python benchmarks/serving_overhead.py 0.2b-int4 [ENGINE_DIR ...] [--threads 1 2] \\
        --output benchmarks/results/serving-overhead.json
    python benchmarks/serving_table.py

A server and a pipeline of this process answer the same questions in turns, each about a picture
that neither has seen: a JPEG of a photo, or a PNG of noise, which nothing makes smaller. Both begin
with the bytes of the picture and end with the first piece of text. The server is timed twice: by
its client, with the connection, the base64 and the client's own part of the work on the same cores;
and by its own clock, from the head of the request to the first piece in the socket, less decoding
the picture and the pipeline's own time, which is what the API does too. The model must give
answers of some length: one with random weights does. The
exit code is 1 if the server costs more than it may.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.serving_process import Server, body_of

MOST_TTFT_MS, MOST_RATE_LOST, MOST_IDLE_MIB, MOST_START_S = 3.0, 0.02, 40.0, 0.5
SHORTEST_ANSWER = 16
WARM_UP = 2
IDLE_AFTER_S = 12.0
QUESTION = "Describe everything from left to right."
LOAD = """
import sys, time
from divprune.runtime.pipeline import Pipeline
from divprune.runtime.memory import rss
pipeline = Pipeline.from_dir(sys.argv[1], threads=int(sys.argv[2]))
print("loaded", flush=True)
if len(sys.argv) > 3:
    pipeline.generate(open(sys.argv[3], "rb").read(), sys.argv[4], max_new_tokens=8).result
    time.sleep(1)
    print(rss())
"""


def photo(seed: int) -> bytes:
    """The photo beside this file with a grey square somewhere, as a camera stores it."""
    drawn = np.random.default_rng(seed)
    with Image.open(Path(__file__).with_name("picture.jpg")) as stored:
        image = stored.convert("RGB")
    left, top = map(int, drawn.integers(0, 200, 2))
    image.paste((128, 128, 128), (left, top, left + 40, top + 40))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def noise(seed: int) -> bytes:
    """A PNG that compresses to hardly less than its pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((336, 336)).save(file, "PNG", compress_level=1)
    return file.getvalue()


PICTURES = {"photo": photo, "noise": noise}


@dataclass(frozen=True)
class Timed:
    """One answer.

    Attributes:
        ttft_ms: From the bytes of the picture to the first piece of text, as the asker sees it.
        ms_a_token: Of those behind the first.
        tokens: Of the answer.
        sent_ms: Server: from the head of the request to the first piece of text in the socket.
        pipeline_ms: Server: of that, decoding the picture and the pipeline up to that piece.
    """

    ttft_ms: float
    ms_a_token: float
    tokens: int
    sent_ms: float = 0.0
    pipeline_ms: float = 0.0


def through_api(pipeline: Any, data: bytes, tokens: int) -> Timed:
    start = time.perf_counter()
    generation = pipeline.generate(data, QUESTION, max_new_tokens=tokens)
    next(generation)
    first = time.perf_counter()
    count = len(generation.result.token_ids)
    decode_s = time.perf_counter() - first
    return Timed(1000 * (first - start), 1000 * decode_s / max(1, count - 1), count)


def through_server(server: Server, data: bytes, tokens: int) -> Timed:
    body = json.loads(body_of(data, QUESTION, stream=True)) | {"max_tokens": tokens}
    encoded = json.dumps(body).encode()
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("POST", "/v1/chat/completions", encoded)
    response = connection.getresponse()
    first = last = 0.0
    count, clock = 0, {}
    while line := response.readline():
        if b'"content":"' in line and b'"content":""' not in line:
            last = time.perf_counter()
            first = first or last
        elif b'"timings_ms"' in line:
            clock = json.loads(line[6:])["divprune"]["timings_ms"]
        elif b'"completion_tokens"' in line:
            count = json.loads(line[6:])["usage"]["completion_tokens"]
    connection.close()
    return Timed(
        1000 * (first - start),
        1000 * (last - first) / max(1, count - 1),
        count,
        clock["first_sent"],
        clock["decode"] + clock["first_piece"],
    )


def start_seconds(command: list[str], mark: str) -> float:
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if mark in line:
            break
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return seconds


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pipeline_rss(engine_dir: Path, threads: int, data: Path) -> int:
    words = [sys.executable, "-c", LOAD, engine_dir, threads, data, QUESTION]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def measure(
    engine_dir: Path, rounds: int, tokens: int, threads: int, name: str, folder: Path
) -> dict[str, Any]:
    from divprune.runtime.pipeline import Pipeline

    picture = PICTURES[name]
    data = folder / "picture"
    data.write_bytes(picture(10**6))
    words = [sys.executable, "-m", "divprune.runtime.cli.serve", str(engine_dir), "--port", "0"]
    load = [sys.executable, "-c", LOAD, str(engine_dir), str(threads)]
    starts = [
        (
            start_seconds(load, "loaded"),
            start_seconds([*words, "--threads", str(threads)], "at http"),
        )
        for _ in range(5)
    ]
    server = Server.start(engine_dir, "--threads", threads)
    try:
        pipeline = Pipeline.from_dir(engine_dir, threads=threads)
        through_server(server, picture(10**6), 8)
        time.sleep(IDLE_AFTER_S)
        idle = server.rss() - pipeline_rss(engine_dir, threads, data)
        api: list[Timed] = []
        served: list[Timed] = []
        spent = [0.0, 0.0]
        for number in range(-WARM_UP, rounds):
            if number == 0:
                api, served, spent = [], [], [0.0, 0.0]
            askers = [
                (api, partial(through_api, pipeline), time.process_time),
                (served, partial(through_server, server), partial(cpu_seconds, server.process.pid)),
            ]
            # Who comes first changes: after a rest the machine may be quicker or slower.
            for place in (0, 1) if number % 2 else (1, 0):
                answers, ask, cpu = askers[place]
                before = cpu()
                answers.append(ask(picture(2 * number + 10 + place), tokens))
                spent[place] += cpu() - before
    finally:
        server.process.kill()
    return {
        "engine": engine_dir.name,
        "threads": threads,
        "picture": name,
        "request_kb": round(len(body_of(data.read_bytes(), QUESTION, stream=True)) / 1000),
        "rounds": rounds,
        **compare(api, served),
        "cpu_s_per_answer": {
            "api": round(spent[0] / rounds, 3),
            "server": round(spent[1] / rounds, 3),
        },
        "idle_mib_above_the_pipeline": round(idle / 2**20, 1),
        "start_s": {
            name: round(min(pair[place] for pair in starts), 2)
            for place, name in enumerate(("pipeline", "server"))
        },
        "start_beyond_loading_s": round(median(b - a for a, b in starts), 2),
    }


def compare(api: list[Timed], served: list[Timed]) -> dict[str, Any]:
    """Medians of both, and the median of the difference in the same round."""
    pairs = list(zip(api, served, strict=True))
    lost = [1 - a.ms_a_token / s.ms_a_token for a, s in pairs]
    return {
        "answer_tokens": int(median(each.tokens for each in served)),
        "ttft_ms": {
            "api": round(median(each.ttft_ms for each in api), 2),
            "server": round(median(each.ttft_ms for each in served), 2),
        },
        "ttft_overhead_ms": round(median(s.ttft_ms - a.ttft_ms for a, s in pairs), 2),
        "of_that_ms": {
            "server": spread([s.sent_ms - s.pipeline_ms for s in served]),
            "pipeline in the server, beside the API": spread(
                [s.pipeline_ms - a.ttft_ms for a, s in pairs]
            ),
            "connection and client": spread([s.ttft_ms - s.sent_ms for s in served]),
        },
        "ms_per_token": {
            "api": round(median(each.ms_a_token for each in api), 3),
            "server": round(median(each.ms_a_token for each in served), 3),
        },
        "tokens_per_second_lost": round(median(lost), 4),
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, and the range without the outer tenths."""
    ordered = sorted(values)
    tenth = (len(ordered) - 1) // 10
    found = {"median": median(ordered), "p10": ordered[tenth], "p90": ordered[-1 - tenth]}
    return {name: round(value, 2) for name, value in found.items()}


def judge(report: dict[str, Any]) -> dict[str, bool]:
    """What of it is as it must be."""
    return {
        f"at most {MOST_TTFT_MS:g} ms to the first token, by the server's clock": report[
            "of_that_ms"
        ]["server"]["median"]
        <= MOST_TTFT_MS,
        f"at most {MOST_TTFT_MS:g} ms to the first token, by the client's": report[
            "ttft_overhead_ms"
        ]
        <= MOST_TTFT_MS,
        f"at most {MOST_RATE_LOST:.0%} of tokens/s": report["tokens_per_second_lost"]
        <= MOST_RATE_LOST,
        f"at most {MOST_IDLE_MIB:g} MiB while idle": report["idle_mib_above_the_pipeline"]
        <= MOST_IDLE_MIB,
        f"at most {MOST_START_S:g} s to start": report["start_beyond_loading_s"] <= MOST_START_S,
    }


def main() -> int:
    import tempfile

    from benchmarks.export_figures import machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dirs", type=Path, nargs="+", metavar="ENGINE_DIR")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--pictures", choices=PICTURES, nargs="+", default=list(PICTURES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    reports = []
    for engine_dir, threads, name in product(
        options.engine_dirs, options.threads, options.pictures
    ):
        with tempfile.TemporaryDirectory() as folder:
            report = measure(
                engine_dir, options.rounds, options.tokens, threads, name, Path(folder)
            )
        if report["answer_tokens"] < SHORTEST_ANSWER:
            found = f"answers of {engine_dir} have {report['answer_tokens']} tokens"
            print(f"{found}, too few to measure tokens/s: export a checkpoint with random weights",
                  file=sys.stderr)  # fmt: skip
            return 2
        reports.append({**report, "checks": judge(report)})
    text = json.dumps({"machine": machine(), "engines": reports}, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text, end="")
    return 0 if all(all(report["checks"].values()) for report in reports) else 1


if __name__ == "__main__":
    raise SystemExit(main())
