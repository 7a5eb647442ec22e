"""One request through several runtimes in turns, each in its own environment.

    python benchmarks/peers/compare.py --rounds 7 --output benchmarks/results/peers-1.1b.json \
        --worker divprune=".venv/bin/python divprune_worker.py ENGINE_DIR 2" \
        --worker genai="PEERS/genai/bin/python genai_worker.py GENAI_DIR" ...

Every round asks every worker for 576 and 58 visual tokens, beginning with another worker each
time, so that a machine that drifts favours nobody. Commands are run in this folder; README.md says
how the environments are made.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import shlex
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
IMAGE_TOKENS = (576, 58)


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

    def answer(self, image_tokens: int, new_tokens: int) -> dict[str, float]:
        request = {"image_tokens": image_tokens, "new_tokens": new_tokens}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
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
    parser.add_argument("--rounds", type=int, default=7, help="after one that does not count")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    workers = [Worker(*text.split("=", 1)) for text in args.worker]
    samples = measure(workers, args.rounds, args.new_tokens)
    report = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "new_tokens": args.new_tokens,
        "workers": {worker.name: worker.facts for worker in workers},
        "samples": samples,
    }
    for worker in workers:
        worker.close()
    names = [worker.name for worker in workers]
    text = f"{table(samples, names)}\n\n{ratio_table(samples, names)}\n"
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        args.output.with_suffix(".md").write_text(heading(report) + text, encoding="utf-8")
    print(text)
    return 0


def heading(report: dict[str, Any]) -> str:
    """What was measured, on what."""
    machine, workers = report["machine"], report["workers"].values()
    runtimes = ", ".join(f"{w['runtime']} {w['version']} ({w['weights']})" for w in workers)
    return (
        "# Beside other runtimes\n\n"
        "Written by `benchmarks/peers/compare.py` (its README says how): one request\n"
        f"in turns, {report['new_tokens']} new tokens, on {machine['cpu']}, "
        f"{machine['cores']} cores, {report['date']}.\n{runtimes}. Seconds, medians.\n\n"
    )


def measure(workers: list[Worker], rounds: int, new_tokens: int) -> list[dict[str, Any]]:
    """Answers in turns; the first round is warm-up."""
    samples = []
    for number in range(rounds + 1):
        first = number % len(workers)
        for worker in (*workers[first:], *workers[:first]):
            for image_tokens in IMAGE_TOKENS:
                result = worker.answer(image_tokens, new_tokens)
                sample = {"round": number, "worker": worker.name, "image_tokens": image_tokens}
                if number:
                    samples.append(sample | result)
                print(json.dumps(sample | result), file=sys.stderr)
    return samples


def machine() -> dict[str, str]:
    model = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="ascii").splitlines()
        if line.startswith("model name")
    ]
    return {"cpu": model[0], "cores": str(len(model)), "system": platform.platform()}


def table(samples: list[dict[str, Any]], names: list[str]) -> str:
    """Medians by worker and visual tokens, as Markdown."""
    columns = ("vision", "prefill", "ttft", "decode_tokens_per_s", "peak_rss")
    lines = ["| runtime | visual tokens | " + " | ".join(columns) + " |"]
    lines.append("| --- | --: |" + " --: |" * len(columns))
    for name in names:
        for tokens in IMAGE_TOKENS:
            rows = [s for s in samples if s["worker"] == name and s["image_tokens"] == tokens]
            cells = [_cell(column, [r[column] for r in rows if column in r]) for column in columns]
            if any(cells[:-1]):
                lines.append(f"| {name} | {tokens} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio_table(samples: list[dict[str, Any]], names: list[str]) -> str:
    """The first worker over each other one, round by round: median and its 95 % interval.

    Its TTFT with 58 visual tokens is also put beside what the others need for all 576.
    """
    first, *others = names
    pairs = [(58, 58), (576, 576), (58, 576)]
    lines = [f"| {first} over | visual tokens | prefill | ttft | decode_tokens_per_s | peak_rss |"]
    lines.append("| --- | --- |" + " --: |" * 4)
    for other in others:
        for ours, theirs in pairs:
            columns = ("prefill", "ttft", "decode_tokens_per_s", "peak_rss")
            if ours != theirs:
                columns = ("", "ttft", "", "")
            cells = [_ratio(samples, (first, ours), (other, theirs), name) for name in columns]
            if any(cells[:-1]):
                lines.append(f"| {other} | {ours} over {theirs} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _ratio(
    samples: list[dict[str, Any]], ours: tuple[str, int], theirs: tuple[str, int], column: str
) -> str:
    """Median of the rounds' ratios; in brackets the middle 95 % of medians drawn again."""
    values = []
    for key in (ours, theirs):
        found = [s for s in samples if (s["worker"], s["image_tokens"]) == key and column in s]
        values.append({sample["round"]: sample[column] for sample in found})
    ratios = [values[0][n] / values[1][n] for n in values[0] if n in values[1]]
    if not ratios:
        return ""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(4000))
    low, high = medians[100], medians[-101]
    return f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"


def _cell(column: str, values: list[float]) -> str:
    if not values:
        return ""
    median = statistics.median(values)
    if column == "peak_rss":
        return f"{max(values) / 2**20:,.0f} MiB"
    return f"{median:.1f}" if column == "decode_tokens_per_s" else f"{median:.2f}"


if __name__ == "__main__":
    raise SystemExit(main())
