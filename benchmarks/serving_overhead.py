"""What the server costs beside the API: time to first token, tokens/s, memory, start-up.

    python benchmarks/serving_overhead.py ENGINE_DIR --output FILE

A server and a pipeline of this process answer the same questions in turns, each about a picture
that neither has seen. Times of the server are those of its client, picture in base64 and all.
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
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.serving_load import Server, body_of

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


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((336, 336)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def through_api(pipeline: Any, data: bytes, tokens: int) -> tuple[float, float]:
    start = time.perf_counter()
    generation = pipeline.generate(data, QUESTION, max_new_tokens=tokens)
    next(generation)
    first = time.perf_counter()
    count = len(generation.result.token_ids)
    return 1000 * (first - start), 1000 * (time.perf_counter() - first) / max(1, count - 1)


def through_server(server: Server, data: bytes, tokens: int) -> tuple[float, float]:
    body = json.loads(body_of(data, QUESTION, stream=True)) | {"max_tokens": tokens}
    encoded = json.dumps(body).encode()
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
    connection.request("POST", "/v1/chat/completions", encoded)
    response = connection.getresponse()
    first = last = count = 0
    while line := response.readline():
        if b'"content":"' in line and b'"content":""' not in line:
            last = time.perf_counter()
            first = first or last
        elif b'"completion_tokens"' in line:
            count = json.loads(line[6:])["usage"]["completion_tokens"]
    connection.close()
    return 1000 * (first - start), 1000 * (last - first) / max(1, count - 1)


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
    engine_dir: Path, rounds: int, tokens: int, threads: int, folder: Path
) -> dict[str, Any]:
    from divprune.runtime.pipeline import Pipeline

    data = folder / "picture.png"
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
        idle = server.rss() - pipeline_rss(engine_dir, threads, data)
        api, served, spent = [], [], [0.0, 0.0]
        for number in range(-2, rounds):
            if number == 0:
                api, served, spent = [], [], [0.0, 0.0]
            before = time.process_time()
            api.append(through_api(pipeline, picture(2 * number + 10), tokens))
            spent[0] += time.process_time() - before
            before = cpu_seconds(server.process.pid)
            served.append(through_server(server, picture(2 * number + 11), tokens))
            spent[1] += cpu_seconds(server.process.pid) - before
    finally:
        server.process.kill()
    ttft = [median(pair[0] for pair in pairs) for pairs in (api, served)]
    token = [median(pair[1] for pair in pairs) for pairs in (api, served)]
    loads = [min(pair[place] for pair in starts) for place in (0, 1)]
    return {
        "engine_dir": engine_dir.name,
        "threads": threads,
        "rounds": rounds,
        "ttft_ms": {"api": round(ttft[0], 2), "server": round(ttft[1], 2)},
        "ttft_overhead_ms": round(ttft[1] - ttft[0], 2),
        "ttft_overhead_ms_paired": round(
            median(s[0] - a[0] for a, s in zip(api, served, strict=True)), 2
        ),
        "ms_per_token": {"api": round(token[0], 3), "server": round(token[1], 3)},
        "tokens_per_second_lost": round(1 - token[0] / token[1], 4) if token[1] else None,
        "tokens_per_second_lost_paired": round(
            median(1 - a[1] / s[1] for a, s in zip(api, served, strict=True) if s[1]), 4
        )
        if token[1]
        else None,
        "cpu_s_per_answer": {
            "api": round(spent[0] / rounds, 3),
            "server": round(spent[1] / rounds, 3),
        },
        "load_average": round(os.getloadavg()[0], 1),
        "idle_mib_above_the_pipeline": round(idle / 2**20, 1),
        "start_s": {"pipeline": round(loads[0], 2), "server": round(loads[1], 2)},
        "start_beyond_loading_s": round(loads[1] - loads[0], 2),
    }


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(
            options.engine_dir, options.rounds, options.tokens, options.threads, Path(folder)
        )
    text = json.dumps(report, indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
