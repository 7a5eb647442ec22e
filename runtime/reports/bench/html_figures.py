"""The HTML report at a glance: the result in one sentence, tiles and bars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from divprune.runtime.reports.bench.html_text import (
    STAGE_NAMES,
    TTFT_STAGES,
    format_joules,
    format_rate,
    format_size,
    format_time,
    format_times,
    format_watts,
)
from divprune.runtime.reports.bench.layout import format_keep, format_ms
from divprune.runtime.reports.bench.report import Run, Stat

__all__ = [
    "Bar",
    "Group",
    "Headline",
    "Tile",
    "make_bars",
    "make_headline",
    "make_memory",
    "make_power",
    "make_tiles",
]

_T = TypeVar("_T", int, float)
_LABELLED_SHARE = 11.0  # per cent of the width below which a bar's segment has no room for text


@dataclass(frozen=True)
class Headline:
    """The one-sentence result: what it says in large letters, and the rest."""

    result: str
    detail: str
    spread: str


@dataclass(frozen=True)
class Tile:
    """One figure, before (keep 1.0; empty without one) and after."""

    label: str
    before: str
    after: str
    note: str


@dataclass(frozen=True)
class Bar:
    """A stacked bar: width of each stage in per cent of the longest bar."""

    label: str
    note: str
    total: str
    segments: tuple[tuple[str, str, str, str], ...]  # class, width, text, tooltip


@dataclass(frozen=True)
class Group:
    """Bars of one kind of memory or power: label, width and text of each."""

    title: str
    note: str
    bars: tuple[tuple[str, str, str], ...]


def make_headline(runs: Sequence[Run], total: int) -> Headline:
    """The speed-up of the exported fraction, or its time where there is nothing to compare."""
    best = _headline_run(runs)
    detail = f"at keep {format_keep(best.keep)}: {best.num_kept} of {total} visual tokens"
    ratio = best.ratios.get("ttft")
    if ratio is None:
        result = f"TTFT {format_time(best.stages.ttft.p50)}"
        missing = "a smaller fraction" if best.keep == 1 else "keep 1.0"
        return Headline(result, detail, f"without {missing} there is nothing to compare it with")
    spread = f"{format_times(ratio.low)} to {format_times(ratio.high)} in 80 % of the rounds"
    if ratio.low > 1:
        return Headline(f"TTFT {format_times(ratio.median)} faster", detail, spread)
    if 0 < ratio.high < 1:
        return Headline(f"TTFT {format_times(1 / ratio.median)} slower", detail, spread)
    return Headline("TTFT not faster within the spread", detail, spread)


def make_tiles(runs: Sequence[Run]) -> Iterator[Tile]:
    """Figures of the fraction in the headline beside those of keep 1.0."""
    best = _headline_run(runs)
    baseline = next((run for run in runs if run.keep == 1 and run is not best), None)
    pairs = [run for run in (baseline, best) if run is not None]

    def tile(label: str, values: Sequence[str], note: str = "") -> Tile:
        return Tile(label, values[0] if len(values) > 1 else "", values[-1], note)

    yield tile("Time to first token", [format_time(run.stages.ttft.p50) for run in pairs], "median")
    yield tile("Tokens prefilled", [f"{run.prompt_tokens:,}" for run in pairs], "text and picture")
    yield tile("KV cache filled", [format_size(run.live_kv_bytes) for run in pairs], "at the end")
    rates = [run.decode_tokens_per_s for run in pairs]
    if any(rate is not None for rate in rates):
        yield tile("Decode", [format_rate(rate) for rate in rates], "tokens/s after the first")
    powers = [run.power for run in pairs if run.power is not None]
    if len(powers) == len(pairs):
        joules = [format_joules(power.joules_per_answer) for power in powers]
        yield tile("Energy per answer", joules, f"at {powers[-1].mean_w:.1f} W")


def make_bars(runs: Sequence[Run], total: int) -> Iterator[Bar]:
    """Means, because means of the stages add up to the mean of their sum."""
    longest = max(sum(_means(run)) for run in runs) or 1.0
    for run in runs:
        means = _means(run)
        segments = tuple(
            _segment(stage, mean, 100 * mean / longest)
            for stage, mean in zip(TTFT_STAGES, means, strict=True)
        )
        note = f"{run.num_kept} of {total} tokens"
        yield Bar(f"keep {format_keep(run.keep)}", note, format_time(sum(means)), segments)


def make_memory(runs: Sequence[Run]) -> Iterator[Group]:
    """What the cache, the process and the device needed, as far as it is known."""
    kinds = {
        "KV cache filled": (f"of {format_size(runs[0].kv_cache_bytes)} set aside", "live_kv_bytes"),
        "Peak host memory": ("of the whole process", "peak_host_bytes"),
        "Peak device memory": ("", "peak_device_bytes"),
    }
    for title, (note, field) in kinds.items():
        yield from _group(title, note, [(run, getattr(run, field)) for run in runs], format_size)


def make_power(runs: Sequence[Run]) -> Iterator[Group]:
    """Power and energy; nothing where no fraction has them."""
    powers = [(run, run.power) for run in runs if run.power]
    mean = [(run, power.mean_w) for run, power in powers]
    largest = [(run, power.max_w) for run, power in powers]
    energy = [(run, power.joules_per_answer) for run, power in powers]
    yield from _group("Mean power", "while answering", mean, format_watts)
    yield from _group("Largest power", "of any reading", largest, format_watts)
    yield from _group("Energy per answer", "mean power times mean duration", energy, format_joules)


def _headline_run(runs: Sequence[Run]) -> Run:
    """The largest fraction below 1.0, or keep 1.0 alone; ``runs`` are in descending order.

    Where the exported fraction was measured it is that one, as none above it can be: a
    headline of what happened to be the fastest would be a headline of the wildest ``--keep``.
    """
    return next((run for run in runs if run.keep < 1), runs[0])


def _group(
    title: str, note: str, values: Sequence[tuple[Run, _T | None]], write: Callable[[_T], str]
) -> Iterator[Group]:
    """The known values as bars; nothing where none is known."""
    known = [(run, value) for run, value in values if value is not None]
    largest = max((value for _, value in known), default=0) or 1
    bars = tuple(
        (format_keep(run.keep), f"{100 * value / largest:.3f}", write(value))
        for run, value in known
    )
    if bars:
        yield Group(title, note, bars)


def _segment(stage: str, mean: float, width: float) -> tuple[str, str, str, str]:
    text = format_ms(mean) if width >= _LABELLED_SHARE else ""
    return stage, f"{width:.3f}", text, f"{STAGE_NAMES[stage]}: {format_time(mean)}"


def _means(run: Run) -> list[float]:
    stats: list[Stat] = [getattr(run.stages, stage) for stage in TTFT_STAGES]
    return [stat.mean for stat in stats]
