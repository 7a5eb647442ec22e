"""Keep 1.0 beside keep 0.1, this toolkit beside transformers, in turns within one process.

    python benchmarks/gpu_end_to_end.py --output benchmarks/results/gpu-end-to-end-DEVICE.json

A random-weight model is written and exported (1.1B by default: with a 7B shape that alone takes
minutes); then four contestants answer the same question about the same picture in turns. The report
is written after every answer:

| contestant | selection |
|---|---|
| ONNX Runtime, keep 1.0 and 0.1 | inside the exported vision graph |
| transformers, keep 1.0 | none |
| transformers, keep 0.1 | the published rule in torch (transformers_divprune.py) |

`benchmarks/gpu_day` has the same in parts, each within a time of its own; this script itself has
not run on a GPU. Weights are random: times mean something, answers do not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "benchmarks" / "picture.jpg"
QUESTION = "Describe the image."
STAGES = ("vision", "selection", "prefill", "ttft", "decode")
PACKAGES = ("divprune-edge", "onnxruntime", "onnxruntime-gpu", "torch", "transformers")


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as temporary:
        report = run(arguments, arguments.work or Path(temporary))
    print(json.dumps(report, indent=2))
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    shapes = ["llava-tiny", "llava-1.1b", "llava-1.5-7b"]
    add("--shape", choices=shapes, default="llava-1.1b", help="default: %(default)s")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="default: %(default)s")
    add("--dtype", choices=["fp16", "fp32"], default="fp16", help="default: %(default)s")
    add("--keep", type=float, default=0.1, help="beside 1.0 (default: %(default)s)")
    add("--max-new-tokens", type=int, default=32, metavar="N", help="default: %(default)s")
    add("--warmup", type=int, default=3, help="rounds that do not count (%(default)s)")
    add("--iters", type=int, default=10, help="rounds that count (%(default)s)")
    add("--work", type=Path, help="where checkpoint and engine directory go, to be kept")
    add("--output", type=Path, help="JSON file to write")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, work: Path) -> dict:
    from divprune.runtime.reports.bench.measure import turns

    checkpoint, engine = prepare(arguments, work)
    contestants = make_contestants(arguments, checkpoint, engine)
    samples: dict[str, list[dict]] = {name: [] for name in contestants}
    for number, name in turns(list(contestants), arguments.warmup + arguments.iters):
        sample = contestants[name]()
        if number >= arguments.warmup:
            samples[name].append(sample)
            if arguments.output:  # what there is, should the time run out
                text = json.dumps(make_report(arguments, samples), indent=2) + "\n"
                arguments.output.write_text(text, encoding="utf-8")
        print(f"round {number + 1}: {name}, TTFT {sample['ttft']:.1f} ms", file=sys.stderr)
    return make_report(arguments, samples)


def make_report(arguments: argparse.Namespace, samples: dict[str, list[dict]]) -> dict:
    """What is known by now; contestants that have not run yet are not in it."""
    known = {name: found for name, found in samples.items() if found}
    return {
        "device": machine(arguments.device),
        "tools": {name: found for name in PACKAGES if (found := installed(name))},
        "options": {k: v for k, v in vars(arguments).items() if not isinstance(v, Path)},
        "same_tokens_kept": overlap(known, arguments.keep),
        "runs": {name: summarize(found) for name, found in known.items()},
    }


def prepare(arguments: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """Write the checkpoint and export it, unless an earlier run has left them in ``work``."""
    from divprune.export.checkpoint.random import write_random_checkpoint
    from divprune.export.export_model import ExportOptions, export_model

    name = f"{arguments.shape}-{arguments.dtype}"
    checkpoint, engine = work / name, work / f"engine-{name}-keep{arguments.keep:g}"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, arguments.shape, dtype=arguments.dtype, layout="v5")
    if not engine.exists():
        options = ExportOptions(
            model=str(checkpoint), keep=arguments.keep, dtype=arguments.dtype, output=engine
        )
        export_model(options)
    return checkpoint, engine


def make_contestants(
    arguments: argparse.Namespace, checkpoint: Path, engine: Path
) -> dict[str, Callable[[], dict]]:
    import numpy as np
    import torch

    from benchmarks.transformers_divprune import TransformersLlava
    from divprune.runtime.inputs.image_loading import load_image
    from divprune.runtime.pipeline import Pipeline

    pipeline = Pipeline.from_dir(engine, device=arguments.device)
    dtype = torch.float16 if arguments.dtype == "fp16" else torch.float32
    theirs = TransformersLlava(checkpoint, arguments.device, dtype)
    image = load_image(str(PICTURE))
    pixels = pipeline.family.prepare_image(image).inputs["pixel_values"]
    ids = np.array(pipeline.prompt_ids(QUESTION))

    def run_ours(keep: float) -> dict:
        tokens = arguments.max_new_tokens
        generation = pipeline.generate(
            image, QUESTION, keep=keep, max_new_tokens=tokens, ignore_eos=True, reuse=False
        )
        result = generation.result
        times = result.timings
        return {
            "vision": times.vision,
            "selection": None,  # inside the vision graph
            "prefill": times.merge + times.prefill + times.first_sample,
            "ttft": times.ttft - times.preprocess,
            "decode": list(times.decode),
            "prompt_tokens": result.prompt_tokens,
            "kept_indices": list(result.images[0].kept_indices),
            "token_ids": list(result.token_ids),
        }

    def run_theirs(keep: float) -> dict:
        return asdict(theirs.answer(pixels, ids, keep, arguments.max_new_tokens))

    ours = pipeline.backend.name
    return {
        f"{name}, keep {keep:g}": lambda run=run, keep=keep: run(keep)
        for name, run in ((ours, run_ours), (f"transformers ({theirs.implementation})", run_theirs))
        for keep in (1.0, arguments.keep)
    }


def summarize(samples: list[dict]) -> dict:
    """Medians and 10-90 % ranges in milliseconds; decode over all tokens of all answers."""
    out: dict = {"prompt_tokens": samples[0]["prompt_tokens"], "samples": len(samples)}
    for stage in STAGES:
        found = [sample[stage] for sample in samples]
        if stage == "decode":
            found = [ms for times in found for ms in times]
        if not found or found[0] is None:
            continue
        ordered = sorted(found)
        out[f"{stage}_ms"] = {
            "p50": round(statistics.median(ordered), 4),
            "p10": round(ordered[len(ordered) // 10], 4),
            "p90": round(ordered[-1 - len(ordered) // 10], 4),
        }
    return out


def overlap(samples: dict[str, list[dict]], keep: float) -> dict:
    """How many of the kept tokens both chose; half precision makes ties in theirs."""
    pruned = [
        found[0]["kept_indices"] for name, found in samples.items() if f"keep {keep:g}" in name
    ]
    if len(pruned) < 2:
        return {}
    ours, theirs = map(set, pruned)
    return {"ours": len(ours), "theirs_distinct": len(theirs), "both": len(ours & theirs)}


def machine(device: str) -> dict:
    from divprune.runtime.backends.cuda.nvml import open_nvml
    from divprune.runtime.reports.bench.device import device_facts

    return asdict(device_facts(None, open_nvml() if device == "cuda" else None))


def installed(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


if __name__ == "__main__":
    # As a script this file has benchmarks/ on its path and not the repository.
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main())
