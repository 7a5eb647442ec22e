"""Time to first token of every point of the selector grid: add it to the grid's results.

    python benchmarks/selector_ttft.py

Takes the points of ``selector-grid-*.json`` and exports each with exactly its own keep, as one
would to use it. All of them are loaded into one process, with one thread, and take turns: in each
round every point answers the same question about the same picture, in an order drawn anew, and
keep 1.0 several times in between. A ratio is to the median of keep 1.0 in the same round, so that a
machine which is busy for a while slows both; medians over many short rounds leave out the rounds
that were interrupted. Keep 1.0 is that of ``uniform``, whose vision graph has no selection to pay
for.

Writes the times into both JSON files and draws their pictures again; accuracy is not asked again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.grid_engines import (  # noqa: E402
    NO_KEEP,
    PRUNED,
    Engine,
    checkpoint_key,
    export_all,
)
from benchmarks.grid_result import (  # noqa: E402
    SPLITS,
    PointTime,
    Timing,
    read_result,
    result_path,
    write_result,
)
from benchmarks.selector_grid import FIRST_SCENE, add_place_options  # noqa: E402
from divprune.runtime.cli.main_guard import run_guarded  # noqa: E402
from divprune.runtime.errors import OptionError  # noqa: E402
from divprune.runtime.reports.bench.device import core_count, cpu_name, tool_versions  # noqa: E402

WHOLE = Engine("uniform", max(PRUNED), None)
WHOLE_TURNS = 4  # of keep 1.0 in each round
THREADS = 1  # idle threads of one engine would spin into the time of the next
LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Point:
    """What takes a turn: ``keep`` 1.0 is that of ``WHOLE``, 0 that of a selector without any."""

    selector: str
    layer: int | None
    keep: float

    @property
    def engine(self):
        if self.keep == 1.0:
            return WHOLE
        return Engine(self.selector, None if self.keep == NO_KEEP else self.keep, self.layer)


def main(argv=None):
    options = parse_arguments(argv)
    return run_guarded(lambda: run(options))


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_place_options(parser)
    parser.add_argument("--seconds", type=float, default=120, help="to measure (default: 120)")
    parser.add_argument("--pictures", type=int, default=4, help="of each split (default: 4)")
    return parser.parse_args(argv)


def run(options):
    weights = checkpoint_key(options.checkpoint)
    results = {split: require_result(options.output, split, weights) for split in SPLITS}
    points = plan_points(results.values())
    pipelines = load_pipelines(points, options, options.work / weights / "engines")
    load = os.getloadavg()[0]
    questions = draw_questions(options.pictures)
    rounds = measure(points, pipelines, questions, options.seconds)
    timing = describe(points, rounds, load, len(questions))
    for split, result in results.items():
        write_result(result_path(options.output, split), replace(result, timing=timing))
    print(render(timing))
    return 0


def require_result(folder, split, weights):
    path = result_path(folder, split)
    result = read_result(path)
    if result is None or result.weights != weights:
        raise OptionError(
            f"{path} has no rows of this checkpoint to add times to",
            expected=f"the weights {weights}",
            found=result.weights if result else "no such file",
            fix="python benchmarks/selector_grid.py",
        )
    return result


def plan_points(results):
    """Every point of the results once, keep 1.0 first; times do not depend on the split."""
    points = [Point(WHOLE.selector, None, 1.0)]
    for result in results:
        rows = (row for row in result.report.rows if row.keep != 1.0)
        points += [Point(row.selector, row.layer, row.keep) for row in rows]
    return list(dict.fromkeys(points))


def load_pipelines(points, options, folder):
    """A loaded pipeline for each point."""
    from divprune.runtime.backends import load_backend
    from divprune.runtime.pipeline import Pipeline

    engines = list(dict.fromkeys(point.engine for point in points))
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        directories = export_all(pool, engines, options.checkpoint, folder)
    seconds = time.monotonic() - started
    print(f"{len(engines)} engine directories after {seconds:.0f} s", file=sys.stderr)
    loaded = {
        engine: Pipeline(directory, load_backend(None, directory, device=None, threads=THREADS))
        for engine, directory in zip(engines, directories, strict=True)
    }
    return {point: loaded[point.engine] for point in points}


def draw_questions(pictures) -> list[tuple[Any, str]]:
    """A picture with a question of each kind in turn, plain and textured by turns."""
    from PIL import Image

    from models.small_scenes.exam import make_exam

    drawn = []
    for number in range(pictures):
        for split in SPLITS.values():
            (scene,) = make_exam(split, 1, first=FIRST_SCENE + number)
            question = scene.questions[len(drawn) % len(scene.questions)]
            drawn.append((Image.fromarray(scene.pixels), question.text))
    return drawn


def measure(points, pipelines, questions, seconds):
    """Rounds of ms: for each point, a list of what it took in each round (keep 1.0: several)."""
    shuffle = random.Random(0).shuffle
    turns = [*points, *[points[0]] * (WHOLE_TURNS - 1)]
    rounds, end = [], None
    while end is None or time.monotonic() < end or len(rounds) < LEAST_ROUNDS:
        picture, question = questions[len(rounds) % len(questions)]
        shuffle(turns)
        taken = {point: [] for point in points}
        for point in turns:
            keep = None if point.keep == NO_KEEP else point.keep
            answer = pipelines[point].generate(
                picture, question, keep=keep, max_new_tokens=1, reuse=False
            )
            taken[point].append(answer.result.timings.to_dict()["ttft"])
        if end is None:  # the first round warms up
            end = time.monotonic() + seconds
            continue
        rounds.append(taken)
    return rounds


def describe(points, rounds, load, pictures):
    whole = [np.median(taken[points[0]]) for taken in rounds]
    described = []
    for point in points:
        times = [np.median(taken[point]) for taken in rounds]
        low, median, high = np.percentile(times, (10, 50, 90)).round(3).tolist()
        ratios = np.percentile(np.divide(times, whole), (10, 50, 90)).round(4).tolist()
        described.append(
            PointTime(
                selector=point.selector,
                layer=point.layer,
                keep=point.keep,
                ttft_ms=median,
                ttft_low=low,
                ttft_high=high,
                ratio=ratios[1],
                ratio_low=ratios[0],
                ratio_high=ratios[2],
            )
        )
    return Timing(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=f"cpu ({cpu_name()}, {core_count()} cores)",
        tools=tool_versions(),
        threads=THREADS,
        load=round(load, 2),
        rounds=len(rounds),
        pictures=pictures,
        points=tuple(described),
    )


def render(timing):
    """One line for each selector and layer: the ratio of each keep, with its 10-90 % range."""
    from divprune.runtime.reports.tables import Table, to_markdown

    keeps = sorted({point.keep for point in timing.points if point.keep != 1.0}, reverse=True)
    cells = {(point.selector, point.layer, point.keep): point for point in timing.points[1:]}
    rows = []
    for selector, layer in dict.fromkeys((name, layer) for name, layer, _ in cells):
        of_keep = [cells.get((selector, layer, keep)) for keep in keeps]
        shares = [
            f"{p.ratio:.2f} ({p.ratio_low:.2f}-{p.ratio_high:.2f})" if p else "" for p in of_keep
        ]
        rows.append((selector, "" if layer is None else str(layer), *shares))
    header = (
        "TTFT of keep 1.0's",
        "layer",
        *(f"{keep:g}" if keep else "no keep" for keep in keeps),
    )
    whole = timing.points[0]
    about = f"{timing.rounds} rounds, load {timing.load:.1f} at the start; keep 1.0: "
    about += f"{whole.ttft_ms:.1f} ms ({whole.ttft_low:.1f}-{whole.ttft_high:.1f})\n"
    return "\n".join((about, to_markdown(Table(header, tuple(rows), labels=2))))


if __name__ == "__main__":
    raise SystemExit(main())
