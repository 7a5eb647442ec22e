"""``--keep auto:C`` against fixed fractions at the same mean number of kept tokens.

    python benchmarks/auto_keep.py

Draws held-out scenes of the small model (plain, and hard with textures that training never showed),
asks three questions about each at fixed fractions and at similarities to reach, and compares every
similarity with what fixed fractions would have given at its own mean of kept tokens: the straight
line between the two nearest. The 95 % interval of the difference is a bootstrap over scenes.
Writes ``auto-keep.json`` and prints it as a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid_engines import Engine, checkpoint_key, export_engine  # noqa: E402
from benchmarks.selector_grid import write_scenes  # noqa: E402
from divprune.runtime import Pipeline  # noqa: E402
from divprune.runtime.generation.kept_tokens import KeepRule  # noqa: E402
from divprune.runtime.inputs.image_loading import load_image  # noqa: E402
from divprune.runtime.reports.eval.dataset import load_dataset  # noqa: E402
from divprune.runtime.reports.eval.metrics import get_metric  # noqa: E402

FIXED = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
COVERS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95)
RESAMPLES = 2000


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=400, help="of each split")
    parser.add_argument("--questions", type=int, default=3, help="about each scene, at most")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "auto_keep")
    results = ROOT / "benchmarks" / "results" / "auto-keep.json"
    parser.add_argument("--output", type=Path, default=results)
    options = parser.parse_args(argv)
    checkpoint = ROOT / "models" / "small_scenes" / "checkpoint"
    work = options.work / checkpoint_key(checkpoint)
    engine = export_engine(Engine("divprune", max(FIXED), None), checkpoint, work / "engines")
    pipeline = Pipeline.from_dir(engine)
    rows = {}
    for split in ("plain", "hard"):
        dataset = load_dataset(write_scenes(work, split, options.scenes, options.questions))
        rows[split] = compare(*answer_all(pipeline, dataset))
        print(f"{split}: {len(dataset.samples)} questions about {options.scenes} scenes")
        print_table(rows[split])
    options.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def answer_all(pipeline, dataset):
    """Kept tokens float [rules, scenes], right answers and questions the same way."""
    count = get_metric("exact-match").count
    scenes = defaultdict(list)
    for sample in dataset.samples:
        scenes[sample.image].append(sample)
    keeps = [*FIXED, *(f"auto:{cover}" for cover in COVERS)]
    rules = [KeepRule.of(pipeline.manifest, keep) for keep in keeps]
    kept = np.zeros((len(keeps), len(scenes)))
    right = np.zeros_like(kept)
    asked = np.zeros(len(scenes))
    for place, (image, samples) in enumerate(scenes.items()):
        encoded = pipeline.encode_image(load_image(image))
        features = encoded.features
        counts = [rule.count(features.num_image_tokens, features.cover) for rule in rules]
        kept[:, place], asked[place] = counts, len(samples)
        scores = {}  # equal counts are equal answers
        for rule, (keep, number) in enumerate(zip(keeps, counts, strict=True)):
            if number not in scores:
                scores[number] = sum(
                    count(answer(pipeline, encoded, sample.question, keep), sample.answers)[0]
                    for sample in samples
                )
            right[rule, place] = scores[number]
    return kept, right, asked


def answer(pipeline, encoded, question, keep):
    return pipeline.generate(encoded, question, keep=keep, max_new_tokens=40).result.text


def compare(kept, right, asked):
    """One row for each rule; those of ``auto:`` with the gain over the line of fixed ones."""
    whole = np.arange(len(asked))
    random = np.random.default_rng(0)
    resamples = [random.choice(whole, len(whole)) for _ in range(RESAMPLES)]
    rows = []
    for rule in range(len(kept)):
        is_fixed = rule < len(FIXED)
        row = {
            "keep": FIXED[rule] if is_fixed else f"auto:{COVERS[rule - len(FIXED)]}",
            "mean_kept": kept[rule].mean(),
            "p10_kept": np.quantile(kept[rule], 0.1),
            "p90_kept": np.quantile(kept[rule], 0.9),
            "accuracy": right[rule].sum() / asked.sum(),
        }
        if not is_fixed:
            gains = [gain(rule, kept[:, s], right[:, s], asked[s]) for s in resamples]
            row["gain"] = gain(rule, kept, right, asked)
            row["gain_low"], row["gain_high"] = np.quantile(gains, (0.025, 0.975))
        rows.append(row)
    return rows


def gain(rule, kept, right, asked):
    """Accuracy beyond what fixed fractions give at the same mean of kept tokens."""
    means, accuracies = kept.mean(axis=1), right.sum(axis=1) / asked.sum()
    fixed = np.interp(means[rule], means[: len(FIXED)], accuracies[: len(FIXED)])
    return accuracies[rule] - fixed


def print_table(rows):
    print(f"{'keep':>9} {'mean kept':>9} {'10-90 %':>9} {'right':>7}  beyond fixed at that mean")
    for row in rows:
        spread = f"{row['p10_kept']:.0f}-{row['p90_kept']:.0f}"
        line = f"{row['keep']:>9} {row['mean_kept']:9.1f} {spread:>9} {row['accuracy']:7.1%}"
        if "gain" in row:
            line += f"  {row['gain']:+.1%} ({row['gain_low']:+.1%} to {row['gain_high']:+.1%})"
        print(line)


if __name__ == "__main__":
    main()
