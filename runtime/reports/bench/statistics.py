"""Statistics of measured times."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import numpy as np

from divprune.runtime.reports.bench.report import Agreement, Ratio, Stat

__all__ = ["agreement", "describe", "paired_ratio", "rate"]


def describe(values: Sequence[float]) -> Stat | None:
    """Statistics of times in ms; None without any.

    The standard deviation is that of the sample (divided by n - 1).
    """
    if not values:
        return None
    p50, p90, p99 = _percentiles(values, 50, 90, 99)
    return Stat(
        n=len(values),
        mean=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        p50=p50,
        p90=p90,
        p99=p99,
        min=min(values),
        max=max(values),
    )


def paired_ratio(baseline: Sequence[float | None], other: Sequence[float | None]) -> Ratio | None:
    """Speed-up: baseline / other for each iteration that has both, then median and 10-90 %.

    Two times of one iteration lie close together, so that a machine that drifts over the
    minutes changes both and hardly their ratio. None where no iteration has a usable pair.
    """
    pairs = zip(baseline, other, strict=False)  # an interrupted round leaves one of them out
    ratios = [first / second for first, second in pairs if first is not None and second]
    if not ratios:
        return None
    return Ratio(*_percentiles(ratios, 50, 10, 90))


def agreement(
    baseline: Sequence[int], other: Sequence[int], baseline_text: str, other_text: str
) -> Agreement:
    """Count the equal first tokens of two answers, and compare their texts."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(baseline, other, strict=False))
    return Agreement(sum(1 for _ in equal), baseline_text == other_text)


def rate(count: int, ms: float | None) -> float | None:
    """``count`` per second where they take ``ms``; None where there was no time to speak of."""
    return count * 1000 / ms if ms else None


def _percentiles(values: Sequence[float], *percents: float) -> list[float]:
    return [float(value) for value in np.percentile(values, percents)]
