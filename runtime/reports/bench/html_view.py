"""The figures of the HTML report: texts, and lengths as percentages of what they are drawn on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from divprune.runtime.memory import format_bytes
from divprune.runtime.reports.bench.layout import format_keep, format_ms
from divprune.runtime.reports.bench.report import STAGES, Ratio, Run, Stat

__all__ = [
    "STAGE_NAMES",
    "TTFT_STAGES",
    "Bar",
    "Group",
    "Headline",
    "StageRows",
    "Tile",
    "make_bars",
    "make_headline",
    "make_memory",
    "make_power",
    "make_predictions",
    "make_stages",
    "make_tiles",
    "verdict",
]

_T = TypeVar("_T", int, float)

STAGE_NAMES = {
    "preprocess": "Preprocess",
    "vision": "Vision",
    "selection": "Selection alone",
    "merge": "Merge",
    "prefill": "Prefill",
    "first_sample": "First token",
    "ttft": "Time to first token",
    "decode_per_token": "Decode, per token",
}
TTFT_STAGES = ("preprocess", "vision", "merge", "prefill", "first_sample")
_STAGE_NOTES = {
    "ttft": "the sum of preprocess, vision, merge, prefill and first token",
    "selection": "timed on its own; it is part of vision, or of prefill if inside the LLM",
    "first_sample": "choosing the first token from the logits",
}
_TABLE_STAGES = ("ttft", *(stage for stage in STAGES if stage != "ttft"))
_NONE = "\N{EN DASH}"
_LABELLED_SHARE = 11.0  # per cent of the width below which a bar's segment has no room for text


class Headline(NamedTuple):
    """The result in one sentence: what it says in large letters, and the rest."""

    result: str
    detail: str
    spread: str


class Tile(NamedTuple):
    """One figure at keep 1.0 (empty where that was not measured) and at the exported keep."""

    label: str
    before: str
    after: str
    note: str


class Bar(NamedTuple):
    """A stacked bar; a segment is (class, width in per cent of the longest bar, text, tooltip)."""

    label: str
    note: str
    total: str
    segments: tuple[tuple[str, str, str, str], ...]


class Group(NamedTuple):
    """Bars of one kind of memory or power: (label, width in per cent, text) each."""

    title: str
    note: str
    bars: tuple[tuple[str, str, str], ...]


class StageRows(NamedTuple):
    """The rows of one stage in a table."""

    title: str
    note: str
    rows: tuple[tuple[str, ...], ...]


def make_headline(runs: Sequence[Run], total: int) -> Headline:
    """The speed-up of the exported fraction, or its time where there is nothing to compare.

    Args:
        runs: In descending order of the fraction kept.
        total: N, visual tokens of the picture.
    """
    best = _headline_run(runs)
    detail = f"at keep {format_keep(best.asked)}: {best.num_kept} of {total} visual tokens"
    ratio = best.ratios.get("ttft")
    if ratio is None:
        missing = "a smaller fraction" if best.keep == 1 else "keep 1.0"
        spread = f"without {missing} there is nothing to compare it with"
        return Headline(f"TTFT {_time(best.stages.ttft.p50)}", detail, spread)
    spread = f"{_times(ratio.low)} to {_times(ratio.high)} in 80 % of the rounds"
    if ratio.low > 1:
        return Headline(f"TTFT {_times(ratio.median)} faster", detail, spread)
    if 0 < ratio.high < 1:
        return Headline(f"TTFT {_times(1 / ratio.median)} slower", detail, spread)
    return Headline("TTFT not faster within the spread", detail, spread)


def make_tiles(runs: Sequence[Run]) -> Iterator[Tile]:
    """Figures of the fraction in the headline beside those of keep 1.0."""
    best = _headline_run(runs)
    baseline = next((run for run in runs if run.keep == 1 and run is not best), None)
    pairs = [run for run in (baseline, best) if run is not None]

    def tile(label: str, values: Sequence[str], note: str) -> Tile:
        return Tile(label, values[0] if len(values) > 1 else "", values[-1], note)

    yield tile("Time to first token", [_time(run.stages.ttft.p50) for run in pairs], "median")
    yield tile("Tokens prefilled", [f"{run.prompt_tokens:,}" for run in pairs], "text and picture")
    yield tile("KV cache filled", [format_bytes(run.live_kv_bytes) for run in pairs], "at the end")
    rates = [run.decode_tokens_per_s for run in pairs]
    if any(rate is not None for rate in rates):
        yield tile("Decode", [_rate(rate) for rate in rates], "tokens/s after the first")
    powers = [run.power for run in pairs if run.power is not None]
    if len(powers) == len(pairs):
        joules = [_joules(power.joules_per_answer) for power in powers]
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
        yield Bar(f"keep {format_keep(run.asked)}", note, _time(sum(means)), segments)


def make_memory(runs: Sequence[Run]) -> Iterator[Group]:
    """Memory of the cache, the process and the device, as far as it is known."""
    kinds = {
        "KV cache filled": (
            f"of {format_bytes(runs[0].kv_cache_bytes)} set aside",
            "live_kv_bytes",
        ),
        "Peak host memory": ("of the whole process", "peak_host_bytes"),
        "Peak device memory": ("", "peak_device_bytes"),
    }
    for title, (note, field) in kinds.items():
        yield from _group(title, note, [(run, getattr(run, field)) for run in runs], format_bytes)


def make_power(runs: Sequence[Run]) -> Iterator[Group]:
    """Power and energy; nothing where no fraction has them."""
    powers = [(run, run.power) for run in runs if run.power]
    mean = [(run, power.mean_w) for run, power in powers]
    largest = [(run, power.max_w) for run, power in powers]
    energy = [(run, power.joules_per_answer) for run, power in powers]
    yield from _group("Mean power", "while answering", mean, "{:.1f} W".format)
    yield from _group("Largest power", "of any reading", largest, "{:.1f} W".format)
    yield from _group("Energy per answer", "mean power times mean duration", energy, _joules)


def make_stages(runs: Sequence[Run]) -> Iterator[StageRows]:
    """Every stage that was measured: percentiles, speed-up, mean, extremes and count."""
    for stage in _TABLE_STAGES:
        measured = [(run, stat) for run in runs if (stat := getattr(run.stages, stage)) is not None]
        rows = tuple(
            (
                format_keep(run.asked),
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
                format_keep(run.asked),
                format_ms(predicted.ms),
                format_ms(stat.p50) if (stat := getattr(run.stages, stage)) else _NONE,
                predicted.bound,
                _NONE if predicted.achieved is None else f"{100 * predicted.achieved:.0f} %",
                f"{100 * min(predicted.achieved or 0, 1):.1f}",
            )
            for run in runs
            if (predicted := run.predicted.get(stage)) is not None
        )
        if rows:
            yield StageRows(STAGE_NAMES[stage], "", rows)


def verdict(run: Run) -> str:
    """Agreement of an answer with that of keep 1.0, in words."""
    if run.agreement is None:
        return "all visual tokens" if run.keep == 1 else "not compared"
    if run.agreement.same_text:
        return "same text as keep 1.0"
    equal = run.agreement.equal_prefix
    first = {0: "differs from the first token", 1: "differs after 1 equal token"}
    return first.get(equal, f"differs after {equal} equal tokens")


def _headline_run(runs: Sequence[Run]) -> Run:
    """The largest fraction below 1.0, or keep 1.0 alone.

    Where the exported fraction was measured it is that one, as none above it can be: a
    headline of the fastest would be a headline of the wildest ``--keep``.
    """
    return next((run for run in runs if run.keep < 1), runs[0])


def _group(
    title: str, note: str, values: Sequence[tuple[Run, _T | None]], write: Callable[[_T], str]
) -> Iterator[Group]:
    """The known values as bars; nothing where none is known."""
    known = [(run, value) for run, value in values if value is not None]
    largest = max((value for _, value in known), default=0) or 1
    bars = tuple(
        (format_keep(run.asked), f"{100 * value / largest:.3f}", write(value))
        for run, value in known
    )
    if bars:
        yield Group(title, note, bars)


def _segment(stage: str, mean: float, width: float) -> tuple[str, str, str, str]:
    text = format_ms(mean) if width >= _LABELLED_SHARE else ""
    return stage, f"{width:.3f}", text, f"{STAGE_NAMES[stage]}: {_time(mean)}"


def _means(run: Run) -> list[float]:
    stats: list[Stat] = [getattr(run.stages, stage) for stage in TTFT_STAGES]
    return [stat.mean for stat in stats]


def _speed_up(ratio: Ratio | None) -> tuple[str, str]:
    if ratio is None:
        return _NONE, ""
    low, high = (f"{end:.2f}" if end < 10 else f"{end:.0f}" for end in (ratio.low, ratio.high))
    return _times(ratio.median), f"{low} to {high}"


def _mean(stat: Stat) -> str:
    mean = format_ms(stat.mean)
    return mean if stat.std is None else f"{mean} \N{PLUS-MINUS SIGN} {format_ms(stat.std)}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.1f}x" if ratio >= 1.95 else f"{ratio:.2f}x"


def _time(ms: float) -> str:
    return f"{ms / 1000:.1f} s" if ms >= 10_000 else f"{format_ms(ms)} ms"


def _rate(rate: float | None) -> str:
    return _NONE if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def _joules(joules: float) -> str:
    return f"{joules:,.0f} J" if joules >= 100 else f"{joules:.2f} J"
