"""Every selector at every keep, on held-out scenes of the small model: which one to use.

    python benchmarks/selector_grid.py

Draws scenes of both splits (plain, and hard with textures that training never showed), exports
the checkpoint with every selector there is, and asks each engine directory three questions about
each scene, whose kinds take turns, by the code of ``divprune-eval``. A nested selector needs one
engine, whose smaller keeps are prefixes; others need one for each keep, those inside the language
model one for each layer as well. Writes ``selector-grid-<split>.json`` and ``.png``.

Data, engines and logs stay in ``build/selector_grid``, named by the checkpoint: run it again after
an interruption and it goes on. One process a core, with one thread each; times to first token are
those of a machine that is busy with the others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from divprune.export.selection import (  # noqa: E402
    IN_LLM_SELECTORS,
    SELECTORS,
    get_in_llm_selector,
    get_selector,
)
from divprune.runtime.engine_directory import EngineDirectory  # noqa: E402
from divprune.runtime.eval.assemble import assemble_report  # noqa: E402
from divprune.runtime.eval.chart import draw_chart  # noqa: E402
from divprune.runtime.eval.dataset import load_dataset  # noqa: E402
from divprune.runtime.eval.evaluate import evaluate_run, open_log, to_do  # noqa: E402
from divprune.runtime.eval.layout import render_text  # noqa: E402
from divprune.runtime.eval.plan import EngineRun, EvalOptions, plan_runs  # noqa: E402

KEEPS = (1.0, 0.5, 0.25, 0.15, 0.1, 0.05, 0.02)
PRUNED = KEEPS[1:]
SPLITS = {"plain": "test", "hard": "hard"}
FIRST_SCENE = 100_000  # far from those of other figures and of the tests
OPTIONS = EvalOptions(keeps=KEEPS, max_new_tokens=40, threads=1)


@dataclass(frozen=True)
class Engine:
    """An engine directory to make; ``keep`` or ``layer`` is None where it is not an option."""

    selector: str
    keep: float | None
    layer: int | None

    @property
    def label(self):
        layer = "" if self.layer is None else f"-layer{self.layer}"
        return f"{self.selector}{layer}" + ("" if self.keep is None else f"-keep{self.keep:g}")


def main(argv=None):
    options = parse_arguments(argv)
    started = time.monotonic()
    work = options.work / checkpoint_key(options.checkpoint)
    with ProcessPoolExecutor(
        options.processes, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        scenes = {
            split: pool.submit(write_scenes, work, split, options.scenes, options.questions)
            for split in SPLITS
        }
        engines = list(plan_engines(options.selectors, options.layers))
        directories = export_all(pool, engines, options.checkpoint, work / "engines")
        data = {split: future.result() for split, future in scenes.items()}
        runs, notes = plan_runs(directories, KEEPS)
        answer_all(pool, runs, data, options.limit, work)
    for split, path in data.items():
        report = make_report(runs, notes, path, split, options.limit, work)
        write_results(report, split, options.output)
    print(f"the grid took {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    small = ROOT / "models" / "small_scenes" / "checkpoint"
    parser.add_argument("--checkpoint", type=Path, default=small)
    parser.add_argument("--scenes", type=int, default=1000, help="of each split")
    parser.add_argument("--questions", type=int, default=3, help="about each scene, at most")
    parser.add_argument("--limit", type=int, help="ask only the first LIMIT questions of a split")
    every = [*SELECTORS, *IN_LLM_SELECTORS]
    parser.add_argument("--selectors", type=lambda text: text.split(","), default=every)
    parser.add_argument(
        "--layers",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[2],
        help="of selectors inside the language model (default: 2, half of the small one)",
    )
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "selector_grid")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(argv)


def checkpoint_key(checkpoint):
    """Other weights never meet these engines and answers."""
    digest = hashlib.sha256()
    for path in sorted(checkpoint.glob("*.safetensors")) + sorted(checkpoint.glob("*.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def plan_engines(selectors, layers) -> Iterator[Engine]:
    for name in selectors:
        inside = name in IN_LLM_SELECTORS
        selector = get_in_llm_selector(name) if inside else get_selector(name)
        keeps = (max(PRUNED),) if selector.nested else PRUNED
        for layer in layers if inside else (None,):
            for keep in (None,) if name == "vtw" else keeps:
                yield Engine(name, keep, layer)


def write_scenes(work, split, scenes, questions):
    """Draw scenes and questions; the data file is there only when all of it is."""
    from PIL import Image

    from models.small_scenes.exam import make_exam

    folder = work.parent / f"scenes-{scenes}-{questions}" / split
    path = folder / f"{split}.jsonl"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(FIRST_SCENE, FIRST_SCENE + scenes):
        (scene,) = make_exam(SPLITS[split], 1, first=number)
        image = f"{number}.png"
        Image.fromarray(scene.pixels).save(folder / image, compress_level=1)
        for question in in_turns(scene.questions, number, questions):
            sample = {"id": f"{number}-{question.kind}", "image": image}
            sample |= {"question": question.text, "answer": question.answer}
            lines.append(json.dumps(sample | {"category": question.kind}))
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


def in_turns(questions, number, most):
    """At most so many of a scene's questions, other kinds from one scene to the next."""
    first = number * most % len(questions)
    return [*questions[first:], *questions[:first]][:most]


def export_all(pool, engines, checkpoint, folder):
    """Engine directories in the order of the plan; what is there already is taken as it is."""
    futures = [pool.submit(export_engine, engine, checkpoint, folder) for engine in engines]
    return [EngineDirectory.open(future.result()) for future in futures]


def export_engine(engine, checkpoint, folder):
    output = folder / engine.label
    if output.exists():  # an export is renamed into place when it is whole
        return output
    from divprune.export.cli import main as export

    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--model", checkpoint, "--selector", engine.selector, "--output", output]
    arguments += ["--dtype", "fp32", "--no-verify", "--quiet"]
    for flag, value in (("--keep", engine.keep), ("--layer", engine.layer)):
        arguments += [] if value is None else [flag, value]
    if export([str(argument) for argument in arguments]):
        raise SystemExit(f"{engine.label} could not be exported")
    return output


def answer_all(pool, runs, data, limit, work):
    started = time.monotonic()
    futures = [
        pool.submit(answer, run, path, limit, work / split)
        for run in sorted(runs, key=lambda run: -sum(count for _, count in run.keeps))
        for split, path in data.items()
    ]
    for done, future in enumerate(as_completed(futures), 1):
        label, answers = future.result()
        seconds = time.monotonic() - started
        left = seconds / done * (len(futures) - done)
        print(
            f"{done}/{len(futures)} {label}: {answers} answers | {seconds:.0f} s, about {left:.0f}"
            " s left",
            file=sys.stderr,
        )


def answer(run: EngineRun, path, limit, folder):
    folder.mkdir(parents=True, exist_ok=True)
    dataset = load_dataset(path, limit)
    with open_log(folder, run, dataset, OPTIONS) as log:
        missing = to_do(run, dataset, log)
        evaluate_run(run, dataset, OPTIONS, log)
    return f"{folder.name}, {run.label}", missing


def make_report(runs, notes, path, split, limit, work):
    dataset = load_dataset(path, limit)
    records = {}
    for run in runs:
        with open_log(work / split, run, dataset, OPTIONS) as log:
            records[run.label] = log.records
    return assemble_report(runs, records, dataset, OPTIONS, notes)


def write_results(report, split, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"selector-grid-{split}.json").write_text(report.to_json(), encoding="utf-8")
    if chart := draw_chart(report):
        (folder / f"selector-grid-{split}.png").write_bytes(chart)
    print(render_text(report))


if __name__ == "__main__":
    main()
