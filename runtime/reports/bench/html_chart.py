"""The curve of the HTML report: time to first token against the fraction kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from divprune.runtime.reports.bench.layout import format_keep, format_ms
from divprune.runtime.reports.bench.report import Run

__all__ = ["Chart", "Line", "Mark", "make_chart"]

_GAP = 13.0  # per cent of the width that a label needs


class Mark(NamedTuple):
    """One run: where its median and its whisker (fastest to p90) lie, and its label.

    All places are per cent of the plot, from the left and from the top.
    """

    x: str
    y: str
    low: str
    high: str
    label: str
    tooltip: str


class Line(NamedTuple):
    """A straight line from one point to another, in per cent of the plot."""

    x1: str
    y1: str
    x2: str
    y2: str


class Chart(NamedTuple):
    """A plot: ticks as (place, text), the measured marks, and the roofline if there is one."""

    unit: str
    y_ticks: tuple[tuple[str, str], ...]
    x_ticks: tuple[tuple[str, str], ...]
    marks: tuple[Mark, ...]
    measured: tuple[Line, ...]
    roofline: tuple[Line, ...]


def make_chart(runs: Sequence[Run]) -> Chart | None:
    """Plot the runs; None where they are fewer than two, which make no curve.

    Args:
        runs: In descending order of the fraction kept.
    """
    if len(runs) < 2:
        return None
    predicted = [(run.keep, run.predicted["ttft"].ms) for run in runs if "ttft" in run.predicted]
    largest = max([run.stages.ttft.p90 for run in runs] + [ms for _, ms in predicted])
    step = _nice_step(largest / 4)
    top = step * max(1, math.ceil(largest * 1.08 / step))
    unit, scale = ("s", 1000.0) if top >= 10_000 else ("ms", 1.0)
    measured = [(run.keep, run.stages.ttft.p50) for run in runs]
    ticks = range(round(top / step) + 1)
    return Chart(
        unit=unit,
        y_ticks=tuple((_y(step * tick, top), f"{step * tick / scale:g}") for tick in ticks),
        x_ticks=tuple((_x(keep), f"{keep:g}") for keep in (0, 0.25, 0.5, 0.75, 1)),
        marks=tuple(_marks(runs, top)),
        measured=tuple(_lines(measured, top)),
        roofline=tuple(_lines(predicted, top)),
    )


def _marks(runs: Sequence[Run], top: float) -> Iterator[Mark]:
    labelled = _with_room([100 * run.keep for run in runs])
    for run in runs:
        time = run.stages.ttft
        median = f"{format_ms(time.p50)} ms"
        tooltip = f"keep {format_keep(run.asked)}: median {median}, p90 {format_ms(time.p90)} ms"
        places = (_x(run.keep), _y(time.p50, top), _y(time.min, top), _y(time.p90, top))
        yield Mark(*places, median if 100 * run.keep in labelled else "", tooltip)


def _with_room(places: Sequence[float]) -> set[float]:
    """Both ends, then those that are far enough from what has a label already."""
    labelled: set[float] = set()
    for place in (places[-1], *places):
        if all(abs(place - other) >= _GAP for other in labelled):
            labelled.add(place)
    return labelled


def _lines(points: Sequence[tuple[float, float]], top: float) -> Iterator[Line]:
    places = [(_x(keep), _y(ms, top)) for keep, ms in points]
    for start, end in pairwise(places):
        yield Line(*start, *end)


def _x(keep: float) -> str:
    return f"{100 * keep:.3f}"


def _y(ms: float, top: float) -> str:
    return f"{100 - 100 * ms / top:.3f}"


def _nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least)
