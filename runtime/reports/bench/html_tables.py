"""The tables of the HTML report: measured times, and predictions beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from divprune.runtime.reports.bench.html_text import NONE, STAGE_NAMES, format_times
from divprune.runtime.reports.bench.layout import format_keep, format_ms
from divprune.runtime.reports.bench.report import STAGES, Ratio, Run, Stat

__all__ = ["StageRows", "make_predictions", "make_stages"]

_STAGE_NOTES = {
    "ttft": "the sum of preprocess, vision, merge, prefill and first token",
    "selection": "timed on its own; it is part of vision, or of prefill if inside the LLM",
    "first_sample": "choosing the first token from the logits",
}
_TABLE_STAGES = ("ttft", *(stage for stage in STAGES if stage != "ttft"))


@dataclass(frozen=True)
class StageRows:
    """The rows of one stage in the table: cells, the last three for wide screens only."""

    title: str
    note: str
    rows: tuple[tuple[str, ...], ...]


def make_stages(runs: Sequence[Run]) -> Iterator[StageRows]:
    """Every stage that was measured: percentiles, speed-up, mean, extremes and count."""
    for stage in _TABLE_STAGES:
        measured = [(run, stat) for run in runs if (stat := getattr(run.stages, stage)) is not None]
        rows = tuple(
            (
                format_keep(run.keep),
                *map(format_ms, (stat.p50, stat.p90, stat.p99)),
                *_speed_up(run.ratios.get(stage)),
                _mean(stat),
                f"{format_ms(stat.min)} to {format_ms(stat.max)}",
                str(stat.n),
            )
            for run, stat in measured
        )
        if rows:
            yield StageRows(STAGE_NAMES[stage], _STAGE_NOTES.get(stage, ""), rows)


def make_predictions(runs: Sequence[Run]) -> Iterator[StageRows]:
    """Every stage with a roofline: it, the median, the bound, the share and its bar's width."""
    for stage in _TABLE_STAGES:
        rows = tuple(
            (
                format_keep(run.keep),
                format_ms(predicted.ms),
                format_ms(_stat(run, stage).p50) if getattr(run.stages, stage) else NONE,
                predicted.bound,
                NONE if predicted.achieved is None else f"{100 * predicted.achieved:.0f} %",
                f"{100 * min(predicted.achieved or 0, 1):.1f}",
            )
            for run in runs
            if (predicted := run.predicted.get(stage)) is not None
        )
        if rows:
            yield StageRows(STAGE_NAMES[stage], "", rows)


def _speed_up(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return NONE, ""
    low, high = (f"{end:.2f}" if end < 10 else f"{end:.0f}" for end in (ratio.low, ratio.high))
    return format_times(ratio.median), f"{low} to {high}"


def _mean(stat: Stat) -> str:
    mean = format_ms(stat.mean)
    return mean if stat.std is None else f"{mean} \N{PLUS-MINUS SIGN} {format_ms(stat.std)}"


def _stat(run: Run, stage: str) -> Stat:
    stat: Stat = getattr(run.stages, stage)
    return stat
