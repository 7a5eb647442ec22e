"""The same questions to two revisions of this project in turns: has anything become slower?

    git worktree add /tmp/before REVISION
    pip install --no-deps --target /tmp/old /tmp/before
    pip install --no-deps --target /tmp/new .
    python benchmarks/revisions.py CHECKPOINT --old /tmp/old --new /tmp/new [--rounds 5] [--output FILE]

Each revision exports the checkpoint with the same options into a directory of its own; then both
answer in turns, each answer in a process of its own that loads the model. Ratios are those of each
round. Run it in an environment in which the project is not installed otherwise.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).with_name("picture.jpg")
OPTIONS = ("--keep", "0.1", "--dtype", "fp32", "--quant", "int4-g128", "--vision-quant", "int8")
KEEPS = ("1.0", "0.1")
STAGES = ("vision", "prefill", "ttft", "decode_per_token")
TOOL = "import sys; from {module} import main; raise SystemExit(main(sys.argv[1:]))"
EXPORT, RUN = "divprune.export.cli", "divprune.runtime.cli.run"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--old", type=Path, required=True, help="where the old one is installed")
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-new-tokens", default="32")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    roots = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: Path(folder, name) for name in roots}
        for name, root in roots.items():
            model = ("--model", str(arguments.checkpoint.resolve()), "--max-seq-len", "1024")
            call(root, EXPORT, *model, *OPTIONS, "--output", str(engines[name]), "--quiet")
        rounds = []
        for number in range(arguments.rounds + 1):
            found = {}
            for keep in KEEPS:
                # Who comes first changes, since the machine may be quicker after a rest.
                for name in sorted(roots, reverse=bool(number % 2)):
                    answer = ("--keep", keep, "--max-new-tokens", arguments.max_new_tokens)
                    words = (str(engines[name]), str(PICTURE), *answer, "--json")
                    found[name, keep] = json.loads(call(roots[name], RUN, *words))
            rounds.append(found)
    report = summarize(rounds[1:])  # the first one has read the files from the disk
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return 0


def call(root: Path, module: str, *words: str) -> str:
    """Run a tool of the revision that is installed in ``root``; what it printed."""
    return subprocess.run(
        [sys.executable, "-c", TOOL.format(module=module), *words],
        env={**os.environ, "PYTHONPATH": str(root)},
        cwd=root,  # no other tree may come first
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def summarize(rounds: list[dict]) -> dict:
    """Medians of each revision, and new over old: median, smallest and largest of the rounds."""
    measured = {}
    for keep in KEEPS:
        values = {name: [value_of(each[name, keep]) for each in rounds] for name in ("old", "new")}
        measured[f"keep {keep}"] = {
            what: {
                "old": statistics.median(each[what] for each in values["old"]),
                "new": statistics.median(each[what] for each in values["new"]),
                "new_over_old": spread(
                    [n[what] / o[what] for o, n in zip(values["old"], values["new"], strict=True)]
                ),
            }
            for what in values["old"][0]
        } | {
            "same_tokens": all(
                each["old", keep]["token_ids"] == each["new", keep]["token_ids"] for each in rounds
            )
        }
    return {
        "options": " ".join(OPTIONS),
        "rounds": len(rounds),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average_at_end": round(os.getloadavg()[0], 2),
        **measured,
    }


def value_of(answer: dict) -> dict[str, float]:
    times = {f"{stage}_ms": answer["timings_ms"][stage] for stage in STAGES}
    return times | {"peak_mib": answer["memory_bytes"]["peak_rss"] / 2**20}


def spread(ratios: list[float]) -> dict[str, float]:
    kinds = {"median": statistics.median, "min": min, "max": max}
    return {name: round(kind(ratios), 3) for name, kind in kinds.items()}


if __name__ == "__main__":
    raise SystemExit(main())
