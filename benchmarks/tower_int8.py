"""What an int8 vision tower changes: cosine of its features to those in float, and what is kept.

    python benchmarks/tower_int8.py                     # the small trained model, on its scenes
    python benchmarks/tower_int8.py CHECKPOINT ...      # and others, on benchmarks/picture.jpg

Traces the tower of each checkpoint twice, in float32 and with ``--vision-quant int8``, and compares
the features that ONNX Runtime computes, token by token. A tower with random weights tells a wrong
graph from rounding and no more: trained ones have a few channels of large numbers, which share
their scale with all others. Writes ``tower-int8.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from divprune.export.checkpoint.source import resolve_model  # noqa: E402
from divprune.export.graphs.progress import Progress  # noqa: E402
from divprune.export.planning.make_plan import make_plan  # noqa: E402
from divprune.export.planning.options import ExportOptions  # noqa: E402
from divprune.export.selection import get_selector  # noqa: E402
from divprune.export.vision.graphs import write_vision_graphs  # noqa: E402
from divprune.runtime.directory.keep import kept_count  # noqa: E402
from divprune.runtime.inputs.image_loading import load_image  # noqa: E402
from divprune.runtime.reports.bench.device import cpu_name, tool_versions  # noqa: E402

SMALL = ROOT / "models" / "small_scenes"
KEEPS = (0.25, 0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    scenes = sorted((SMALL / "scenes").glob("*.png"))
    picture = [ROOT / "benchmarks" / "picture.jpg"]
    rows = [measure(SMALL / "checkpoint", scenes, "small_scenes (trained)")]
    rows += [measure(path, picture, path.name) for path in options.checkpoints]
    report = {"device": cpu_name(), "tools": tool_versions(), "rows": rows}
    options.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1) + "\n"
    (options.output / "tower-int8.json").write_text(text, encoding="utf-8")
    table = render(report)
    (options.output / "tower-int8.md").write_text(table, encoding="utf-8")
    print(table)


def measure(checkpoint, pictures, label):
    """Cosines over all tokens of all pictures, and the share of kept tokens that stay kept."""
    features = [features_of(checkpoint, pictures, quant) for quant in (None, "int8")]
    cosines = [cosine(*pair) for pair in zip(*features, strict=True)]
    same = {
        f"{keep:g}": float(np.mean([overlap(*pair, keep) for pair in zip(*features, strict=True)]))
        for keep in KEEPS
    }
    tokens = np.concatenate(cosines)
    return {
        "model": label,
        "pictures": len(pictures),
        "tokens": len(tokens),
        "cosine_mean": float(tokens.mean()),
        "cosine_p1": float(np.percentile(tokens, 1)),
        "cosine_min": float(tokens.min()),
        "same_kept": same,
    }


def features_of(checkpoint, pictures, vision_quant):
    """Float32 [N, hidden] of each picture; the graph is thrown away."""
    options = ExportOptions(str(checkpoint), keep=KEEPS[0], dtype="fp32", vision_quant=vision_quant)
    plan = make_plan(options, resolve_model(options.model))
    with tempfile.TemporaryDirectory() as folder:
        write_vision_graphs(plan, Path(folder), Progress(bars=False))
        session = onnxruntime.InferenceSession(
            Path(folder) / "vision" / "model.onnx", providers=["CPUExecutionProvider"]
        )
    return [features(session, plan, load_image(picture)) for picture in pictures]


def features(session, plan, picture):
    prepared = plan.runtime_family.prepare_image(picture)
    feeds = dict(prepared.inputs)
    if plan.varies:
        feeds["kept_slots"] = np.zeros(plan.count_kept(prepared.num_tokens), np.int32)
    (found,) = session.run(["image_features"], feeds)
    return found.astype(np.float64)


def cosine(one, other):
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / norms


def overlap(one, other, keep):
    count = kept_count(keep, len(one))
    select = get_selector("divprune").select
    kept = [set(select(each.astype(np.float32), count).tolist()) for each in (one, other)]
    return len(kept[0] & kept[1]) / count


def render(report):
    keeps = " | ".join(f"same of {keep:g} kept" for keep in KEEPS)
    lines = [
        "# Features of an int8 tower",
        "",
        "Printed by `python benchmarks/tower_int8.py`: cosine of each token's feature to that of",
        f"the tower in float32, on {report['device']}.",
        "",
        f"| model | pictures | tokens | mean | 1st percentile | smallest | {keeps} |",
        "|---|--:|--:|--:|--:|--:|" + "--:|" * len(KEEPS),
    ]
    for row in report["rows"]:
        names = ("cosine_mean", "cosine_p1", "cosine_min")
        cells = [row["model"], str(row["pictures"]), str(row["tokens"])]
        cells += [f"{row[name]:.4f}" for name in names]
        cells += [f"{100 * row['same_kept'][f'{keep:g}']:.0f} %" for keep in KEEPS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
