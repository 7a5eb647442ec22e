"""Compare divprune-plan's predictions with the peak memory of real runs on the CPU.

    python benchmarks/plan_accuracy.py --work /tmp/plan-accuracy

Random-weight checkpoints of two shapes are exported in several precisions; each run is a fresh
divprune-run process, whose peak is the kernel's (VmHWM). What is in the work folder already is
used again. Results go to ``benchmarks/results/plan-accuracy.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from benchmarks.export_figures import machine, random_checkpoint  # noqa: E402
from divprune.runtime.reports.plan.fit import estimate  # noqa: E402
from divprune.runtime.reports.plan.settings import PlanSettings  # noqa: E402
from divprune.runtime.reports.plan.source import find_model  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
KEEPS = (1.0, 0.1)
NEW_TOKENS = 4
CONFIGURATIONS = (
    ("llava-0.2b", ()),
    ("llava-0.2b", ("--dtype", "fp32")),
    ("llava-0.2b", ("--quant", "int4")),
    ("llava-0.2b", ("--quant", "int8", "--vision-quant", "int8")),
    ("llava-0.5b", ("--quant", "int4-asym")),
    ("llava-1.1b", ()),
    ("llava-1.1b", ("--quant", "int4")),
    ("llava-1.1b", ("--quant", "int4-g128-asym", "--vision-quant", "int8")),
    ("llava-1.1b", ("--quant", "int4", "--prefill-quant", "int8", "--vision-quant", "int8")),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and engines (kept)")
    parser.add_argument("--shape", action="append", help="only this shape (default: all)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    runs = []
    for shape, options in CONFIGURATIONS:
        if args.shape is None or shape in args.shape:
            engine = export(args.work, shape, options)
            runs += [measure(engine, shape, options, keep) for keep in KEEPS]
    report = {"machine": machine(), "runs": runs}
    text = json.dumps(report, indent=2) + "\n"
    (RESULTS / "plan-accuracy.json").write_text(text, encoding="utf-8")
    table = markdown(report)
    (RESULTS / "plan-accuracy.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def export(work: Path, shape: str, options: tuple[str, ...]) -> Path:
    checkpoint = random_checkpoint(shape, work)
    engine = work / "-".join((shape, *(word for word in options if not word.startswith("--"))))
    if not engine.exists():
        tool = Path(sys.executable).with_name("divprune-export")
        command = [tool, "--model", checkpoint, "--keep", "0.1", "--no-verify"]
        subprocess.run([*command, *options, "--output", engine], check=True)
    return engine


def measure(engine: Path, shape: str, options: tuple[str, ...], keep: float) -> dict:
    tool = Path(sys.executable).with_name("divprune-run")
    picture = ROOT / "benchmarks" / "picture.jpg"
    command = [tool, engine, picture, "--keep", str(keep), "--max-new-tokens", str(NEW_TOKENS)]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    found = find_model(str(engine))
    assert found.manifest is not None
    settings = PlanSettings(
        target=found.manifest.target,
        keep=keep,
        max_seq_len=found.manifest.max_seq_len,
        dtype=found.manifest.dtype,
        quant=found.manifest.quant.scheme if found.manifest.quant else None,
        vision_quant=found.manifest.vision_quant,
        prefill_quant=found.manifest.prefill_quant,
        text_tokens=result["prompt_tokens"] - result["num_kept"],
        filled_slots=result["prompt_tokens"] + NEW_TOKENS,
    )
    return {
        "shape": shape,
        "options": list(options),
        "dimensions": asdict(found.dimensions),
        "settings": asdict(settings),
        "backend": result["backend"],
        "weight_files": {
            name: record.size
            for name, record in found.manifest.files.items()
            if name.endswith(".data")
        },
        "measured_bytes": result["memory_bytes"]["peak_rss"],
        "predicted_bytes": estimate(found.dimensions, settings).host_peak,
    }


def markdown(report: dict) -> str:
    lines = [
        "# Predicted and measured memory\n\n",
        "Made by `benchmarks/plan_accuracy.py`: peak resident size of a fresh `divprune-run`\n",
        f"process on {report['machine']['cpu']}, {report['runs'][0]['backend']}, random weights.\n",
        "\n| model | options | keep | measured, MiB | predicted, MiB | difference |\n",
        "| --- | --- | --: | --: | --: | --: |\n",
    ]
    for run in report["runs"]:
        measured, predicted = run["measured_bytes"], run["predicted_bytes"]
        lines.append(
            f"| {run['shape']} | {' '.join(run['options']) or 'fp16'} | {run['settings']['keep']} "
            f"| {measured / 2**20:,.0f} | {predicted / 2**20:,.0f} "
            f"| {100 * (predicted / measured - 1):+.1f} % |\n"
        )
    return "".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
