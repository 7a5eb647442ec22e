"""Every selector at every keep, on held-out scenes of the small model: which one to use.

    python benchmarks/selector_grid.py

Draws scenes of both splits (plain, and hard with textures that training never showed), exports
the checkpoint with every selector there is, and asks each engine directory three questions about
each scene, whose kinds take turns, by the code of ``divprune-eval``. A nested selector needs one
engine, whose smaller keeps are prefixes; others need one for each keep, those inside the language
model one for each layer as well. ``vtw`` takes no keep: it is one point for each layer.

Writes ``selector-grid-<split>.json`` and ``.png``. Rows that are there already, of the same weights
and questions, stay: only what they lack is asked, and keep 1.0, which has to come out as before.
Data, engines and logs stay in ``build/selector_grid``, named by the checkpoint: run it again after
an interruption and it goes on. One process a core, with one thread each.

Times to first token are no part of this, which keeps the machine busy: ``selector_ttft.py`` adds
them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid_engines import (  # noqa: E402
    KEEPS,
    PRUNED,
    Engine,
    checkpoint_key,
    export_all,
    plan_engines,
)
from benchmarks.grid_result import (  # noqa: E402
    SPLITS,
    GridResult,
    check_same,
    merge_rows,
    read_result,
    result_path,
    write_result,
)
from divprune.export.selection import IN_LLM_SELECTORS, SELECTORS  # noqa: E402
from divprune.runtime.cli.main_guard import run_guarded  # noqa: E402
from divprune.runtime.reports.eval.assemble import assemble_report  # noqa: E402
from divprune.runtime.reports.eval.dataset import load_dataset  # noqa: E402
from divprune.runtime.reports.eval.evaluate import evaluate_run, open_log, to_do  # noqa: E402
from divprune.runtime.reports.eval.layout import render_text  # noqa: E402
from divprune.runtime.reports.eval.plan import EngineRun, EvalOptions, plan_runs  # noqa: E402

FIRST_SCENE = 100_000  # far from those of other figures and of the tests
OPTIONS = EvalOptions(keeps=KEEPS, max_new_tokens=40, threads=1)
BASELINE = Engine("divprune", max(PRUNED), None)  # answers with every token kept, for all of them


def main(argv=None):
    options = parse_arguments(argv)
    return run_guarded(lambda: run(options))


def run(options):
    started = time.monotonic()
    weights = checkpoint_key(options.checkpoint)
    work = options.work / weights
    planned = list(plan_engines(options.selectors, options.layers, options.vtw_layers))
    with ProcessPoolExecutor(
        options.processes, mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        futures = {
            split: pool.submit(write_scenes, work, split, options.scenes, options.questions)
            for split in SPLITS
        }
        data = {
            split: load_dataset(future.result(), options.limit) for split, future in futures.items()
        }
        paths = {split: result_path(options.output, split) for split in SPLITS}
        results = {split: open_result(paths[split], weights, data[split]) for split in SPLITS}
        missing = [engine for engine in planned if lacks(results.values(), engine)]
        runs = plan_answers(pool, missing, options.checkpoint, work / "engines")
        answer_all(pool, runs, data, options.limit, work)
    for split, dataset in data.items():
        report = make_report(runs, dataset, work / split, results[split])
        report = merge_rows(paths[split], results[split], report)
        timing = results[split].timing if results[split] else None
        print(render_text(write_result(paths[split], GridResult(weights, report, timing))))
    print(f"the grid took {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)
    return 0


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_place_options(parser)
    parser.add_argument("--scenes", type=int, default=1000, help="of each split")
    parser.add_argument("--questions", type=int, default=3, help="about each scene, at most")
    parser.add_argument("--limit", type=int, help="ask only the first LIMIT questions of a split")
    every = [*SELECTORS, *IN_LLM_SELECTORS]
    parser.add_argument("--selectors", type=lambda text: text.split(","), default=every)
    layers = "of the small model's 4 (default: %(default)s)"
    parser.add_argument(
        "--layers", type=numbers, default="2", help=f"of selectors inside the LLM, {layers}"
    )
    parser.add_argument("--vtw-layers", type=numbers, default="1,2,3", help=f"of vtw, {layers}")
    return parser.parse_args(argv)


def add_place_options(parser):
    small = ROOT / "models" / "small_scenes" / "checkpoint"
    parser.add_argument("--checkpoint", type=Path, default=small)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "selector_grid")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")


def numbers(text):
    return [int(number) for number in text.split(",")]


def open_result(path, weights, dataset):
    """The rows that are there already, refused before hours are spent if they are of others."""
    result = read_result(path)
    if result:
        found = (weights, dataset.sha256, len(dataset.samples), OPTIONS.max_new_tokens)
        check_same(path, result, *found)
    return result


def lacks(results, engine):
    """Whether any of the results has not all of its rows."""
    wanted = {(engine.label, keep) for keep in engine.keeps}
    return any(
        result is None or wanted - {(row.engine, row.keep) for row in result.report.rows}
        for result in results
    )


def plan_answers(pool, missing, checkpoint, folder):
    """Runs for the missing engines, the first of which answers with every token kept as well."""
    if not missing:
        return []
    engines = [BASELINE, *(engine for engine in missing if engine != BASELINE)]
    runs, _ = plan_runs(export_all(pool, engines, checkpoint, folder), KEEPS)
    if BASELINE not in missing:
        runs[0] = replace(runs[0], keeps=runs[0].keeps[-1:])
    return runs


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


def answer_all(pool, runs, data, limit, work):
    started = time.monotonic()
    futures = [
        pool.submit(answer, run, dataset.path, limit, work / split)
        for run in sorted(runs, key=lambda run: -sum(run.keeps))
        for split, dataset in data.items()
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


def make_report(runs, dataset, folder, result):
    if not runs:
        return result.report
    records = {}
    for run in runs:
        with open_log(folder, run, dataset, OPTIONS) as log:
            records[run.label] = log.records
    return assemble_report(runs, records, dataset, OPTIONS)


if __name__ == "__main__":
    raise SystemExit(main())
