r"""Time and peak memory of an export and of a first answer, on a random-weight checkpoint.

    python benchmarks/export_figures.py --shape 1.1b --output benchmarks/results/export-1.1b.json
    python benchmarks/export_figures.py --shape 7b --dtype fp32 --quant int4-g128 \
        --vision-quant int8 --max-seq-len 1024

Export and runs are processes of their own, so that each peak is its own. The runs at keep 1.0
and 0.1 alternate; times are medians with the smallest and largest beside them.
"""

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

ROOT = Path(__file__).resolve().parents[1]
KEEPS = (1.0, 0.1)
STAGES = ("vision", "prefill", "ttft", "decode_per_token")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="1.1b")
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--quant")
    parser.add_argument("--vision-quant")
    parser.add_argument("--prefill-quant")
    parser.add_argument("--max-seq-len", type=int)
    parser.add_argument("--runs", type=int, default=3, help="runs at each keep; 0: export only")
    parser.add_argument("--work", type=Path, help="where checkpoint and engine go (kept)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        checkpoint, engine = work / f"llava-{args.shape}", work / f"engine-{args.shape}"
        if not checkpoint.exists():
            script = ROOT / "benchmarks" / "random_llava.py"
            subprocess.run([sys.executable, script, checkpoint, "--shape", args.shape], check=True)
        names = ("dtype", "quant", "vision_quant", "prefill_quant", "max_seq_len")
        export = measure_export(checkpoint, engine, {name: getattr(args, name) for name in names})
        runs = measure_runs(engine, args.runs) if args.runs else None
    text = json.dumps(
        {"shape": args.shape, "machine": machine(), "export": export, "run": runs}, indent=2
    )
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


def measure_export(checkpoint: Path, engine: Path, options: dict) -> dict:
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from divprune.export.export_model import ExportOptions, export_model\n"
        "options = json.loads(sys.argv[3])\n"
        "s = export_model(ExportOptions(model=sys.argv[1], keep=0.1, output=Path(sys.argv[2]),\n"
        "                               force=True, **options))\n"
        "llm = sum(r.size for n, r in s.manifest.files.items() if n.startswith('llm/'))\n"
        "print(json.dumps({'seconds': round(s.seconds, 1), 'peak_rss_bytes': s.peak_memory,\n"
        "                  'bytes_on_disk': s.bytes_on_disk, 'llm_bytes_on_disk': llm,\n"
        "                  'self_check': s.verify_errors, 'tools': s.manifest.tools} | options))\n"
    )
    command = [sys.executable, "-c", code, checkpoint, engine, json.dumps(options)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_runs(engine: Path, runs: int) -> dict:
    picture = ROOT / "benchmarks" / "picture.jpg"
    tool = Path(sys.executable).with_name("divprune-run")
    results: dict[float, list[dict]] = {keep: [] for keep in KEEPS}
    for _ in range(runs):
        for keep in KEEPS:
            command = [tool, engine, picture, "--keep", str(keep), "--max-new-tokens", "16"]
            done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
            results[keep].append(json.loads(done.stdout))
    return {f"keep {keep}": summarize(found) for keep, found in results.items()}


def summarize(results: list[dict]) -> dict:
    times = {}
    for stage in STAGES:
        found = [r["timings_ms"][stage] for r in results]
        times[stage] = {"median": statistics.median(found), "min": min(found), "max": max(found)}
    return {
        "num_kept": results[0]["num_kept"],
        "prompt_tokens": results[0]["prompt_tokens"],
        "peak_rss_bytes": max(r["memory_bytes"]["peak_rss"] for r in results),
        "times_ms": times,
        "backend": results[0]["backend"],
    }


def machine() -> dict:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    load = os.getloadavg()[0]
    return {"cpu": cpu, "cores": os.cpu_count(), "load_average_at_end": round(load, 2)}


if __name__ == "__main__":
    raise SystemExit(main())
