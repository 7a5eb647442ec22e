r"""Time and peak memory of an export and of first answers, on a checkpoint with random weights.

    python benchmarks/export_figures.py --model llava-1.1b --output benchmarks/results/export-1.1b.json
    python benchmarks/export_figures.py --model llava-1.5-7b --dtype fp32 --quant int4-g128 \
        --vision-quant int8 --max-seq-len 1024
    python benchmarks/export_figures.py --model qwen3-vl-2b --quant int4 --picture 672x672
    python benchmarks/export_figures.py --model llava-next-video-7b --quant int4-g128 --frames 8

``--model`` is a preset, a shape of ``divprune.export.checkpoint.random``, or the directory of a
checkpoint that is there already. Export and runs are processes of their own, so that each peak is
its own. The runs at keep 1.0 and 0.1 alternate; times are medians with the smallest and largest
beside them.
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

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
KEEPS = (1.0, 0.1)
STAGES = ("preprocess", "vision", "prefill", "ttft", "decode_per_token")
EXPORT_OPTIONS = ("dtype", "quant", "vision_quant", "prefill_quant", "max_seq_len")
EXPORT_OPTIONS += ("max_image_tokens",)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="llava-1.1b", help="preset, shape or checkpoint")
    parser.add_argument("--dtype", default="fp16")
    parser.add_argument("--quant")
    parser.add_argument("--vision-quant")
    parser.add_argument("--prefill-quant")
    parser.add_argument("--max-seq-len", type=int)
    parser.add_argument("--max-image-tokens", type=int)
    parser.add_argument("--runs", type=int, default=3, help="runs at each keep; 0: export only")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--picture", type=picture_size, default="640x480", metavar="WIDTHxHEIGHT")
    seen.add_argument("--frames", type=int, help="ask about a video of so many, not a picture")
    parser.add_argument("--work", type=Path, help="where checkpoint and engine go (kept)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        checkpoint = random_checkpoint(args.model, work)
        engine = work / f"engine-{checkpoint.name}"
        options = {name: getattr(args, name) for name in EXPORT_OPTIONS}
        report = {"model": checkpoint.name, "export": measure_export(checkpoint, engine, options)}
        if args.runs:
            shown = write_question(work, args.picture, args.frames)
            size = "x".join(map(str, args.picture))
            report["asked"] = f"{args.frames} frames" if args.frames else f"a picture of {size}"
            report["run"] = measure_runs(engine, args.runs, shown)
    text = json.dumps(report | {"machine": machine()}, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 0


def random_checkpoint(model: str, work: Path) -> Path:
    """The checkpoint of that directory, or one below ``work`` that is written if need be."""
    if Path(model).is_dir():
        return Path(model).resolve()
    path = work / model
    if not path.exists():
        tool = [sys.executable, "-m", "divprune.export.checkpoint.random"]
        subprocess.run([*tool, "--model", model, "--output", path], check=True, stdout=sys.stderr)
    return path


def write_question(work: Path, size: tuple[int, int], frames: int | None) -> list[str | Path]:
    """What ``divprune-run`` is asked about: a picture, or frames each moved by a pixel."""
    picture = Image.open(ROOT / "benchmarks" / "picture.jpg")
    if frames is None:
        picture.resize(size, Image.Resampling.LANCZOS).save(work / "picture.png")
        return [work / "picture.png"]
    folder = work / "frames"
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for number in range(frames):
        moved = picture.transform(picture.size, Image.Transform.AFFINE, (1, 0, number, 0, 1, 0))
        moved.save(folder / f"{number:04}.png")
    return ["--video", folder, "--num-frames", str(frames), "--fps", "1"]


def measure_export(checkpoint: Path, engine: Path, options: dict) -> dict:
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from divprune.export.export_model import ExportOptions, export_model\n"
        "from divprune.runtime.memory import free_blocks_at_once\n"
        "free_blocks_at_once()\n"  # as divprune-export does
        "options = json.loads(sys.argv[3])\n"
        "s = export_model(ExportOptions(model=sys.argv[1], keep=0.1, output=Path(sys.argv[2]),\n"
        "                               force=True, **options))\n"
        "llm = sum(r.size for n, r in s.manifest.files.items() if n.startswith('llm/'))\n"
        "print(json.dumps({'seconds': round(s.seconds, 1), 'peak_rss_bytes': s.peak_memory,\n"
        "                  'bytes_on_disk': s.bytes_on_disk, 'llm_bytes_on_disk': llm,\n"
        "                  'self_check': s.verify_errors, 'tools': s.manifest.tools} | options))\n"
    )
    command = [sys.executable, "-c", code, checkpoint, engine, json.dumps(options)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def measure_runs(engine: Path, runs: int, shown: list[str | Path]) -> dict:
    tool = [sys.executable, "-m", "divprune.runtime.cli.run", engine, *shown]
    results: dict[float, list[dict]] = {keep: [] for keep in KEEPS}
    for _ in range(runs):
        for keep in KEEPS:
            command = [*tool, "--keep", str(keep), "--max-new-tokens", "16", "--json"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            results[keep].append(json.loads(done.stdout))
    return {f"keep {keep}": summarize(found) for keep, found in results.items()}


def summarize(results: list[dict]) -> dict:
    times = {}
    for stage in STAGES:
        found = [r["timings_ms"][stage] for r in results]
        times[stage] = {"median": statistics.median(found), "min": min(found), "max": max(found)}
    return {
        "num_image_tokens": results[0]["num_image_tokens"],
        "num_kept": results[0]["num_kept"],
        "prompt_tokens": results[0]["prompt_tokens"],
        "new_tokens": len(results[0]["token_ids"]),
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


def picture_size(text: str) -> tuple[int, int]:
    """Width and height of an argument such as ``640x480``."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"expected a size such as 640x480, found {text!r}")
    return int(width), int(height)


if __name__ == "__main__":
    raise SystemExit(main())
