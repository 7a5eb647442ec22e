"""One request through several runtimes in turns, each in its own environment.

    python benchmarks/peers/compare.py --rounds 7 --output benchmarks/results/peers-1.1b.json \
        --worker divprune=".venv/bin/python divprune_worker.py ENGINE_DIR 2" \
        --worker genai="PEERS/genai/bin/python genai_worker.py GENAI_DIR" ...

Every round asks every worker for all 576 visual tokens and for 58 of them, beginning with another
worker each time, so that a machine that drifts favours nobody. Commands are run in this folder;
README.md says how the environments are made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from protocol import Request
from tables import render

FOLDER = Path(__file__).resolve().parent
IMAGE_TOKENS = 576
KEPT_TOKENS = (IMAGE_TOKENS, 58)


class Worker:
    """A process that answers requests."""

    def __init__(self, name: str, command: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            shlex.split(command),
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts = self._read()["ready"]

    def answer(self, request: Request) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(request.to_json() + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} has ended with status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument("--model", required=True, help="shape of the weights, for the heading")
    parser.add_argument("--side", type=int, default=336, help="of the picture, in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="after one that does not count")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    workers = [Worker(*text.split("=", 1)) for text in args.worker]
    load = os.getloadavg()[0]
    samples = measure(workers, args.rounds, args.side, args.new_tokens)
    report = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine() | {"load_before": load},
        "model": args.model,
        "side": args.side,
        "image_tokens": IMAGE_TOKENS,
        "new_tokens": args.new_tokens,
        "workers": {worker.name: worker.facts for worker in workers},
        "samples": samples,
    }
    for worker in workers:
        worker.close()
    text = render(report)
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def measure(workers: list[Worker], rounds: int, side: int, new_tokens: int) -> list[dict[str, Any]]:
    """Answers in turns; the first round is warm-up."""
    samples = []
    for number in range(rounds + 1):
        first = number % len(workers)
        for worker in (*workers[first:], *workers[:first]):
            for kept in KEPT_TOKENS:
                result = worker.answer(Request(side, IMAGE_TOKENS, kept, new_tokens))
                sample = {"round": number, "worker": worker.name, "kept_tokens": kept}
                if number:
                    samples.append(sample | result)
                print(json.dumps(sample | result), file=sys.stderr)
    return samples


def machine() -> dict[str, Any]:
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
        if line.startswith("model name")
    ]
    return {"cpu": model[0], "cores": len(model), "system": platform.platform()}


if __name__ == "__main__":
    raise SystemExit(main())
