from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.runtime.reports.bench.report import Agreement, Ratio, Stat
from divprune.runtime.reports.bench.statistics import (
    agreement,
    describe,
    paired_ratio,
    rate,
)

TIMES = st.lists(st.floats(0, 1e6), min_size=1, max_size=40)


def test_statistics_of_eleven_known_times():
    times = [float(ms) for ms in (10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5)]
    assert describe(times) == Stat(
        n=11, mean=5.0, std=math.sqrt(11), p50=5.0, p90=9.0, p99=9.9, min=0.0, max=10.0
    )


def test_one_time_has_no_spread():
    assert describe([7.5]) == Stat(1, 7.5, None, 7.5, 7.5, 7.5, 7.5, 7.5)


def test_no_time_has_no_statistics():
    assert describe([]) is None


@given(TIMES)
def test_statistics_are_those_of_the_standard_library(times):
    stat = describe(times)
    assert stat.mean == pytest.approx(statistics.fmean(times))
    assert stat.p50 == pytest.approx(statistics.median(times))
    if len(times) > 1:
        assert stat.std == pytest.approx(statistics.stdev(times), abs=1e-6)
        tenths = statistics.quantiles(times, n=10, method="inclusive")
        assert stat.p90 == pytest.approx(tenths[-1], abs=1e-6)


@given(TIMES)
def test_percentiles_lie_within_the_times_and_in_order(times):
    stat = describe(times)
    values = [stat.min, stat.p50, stat.p90, stat.p99, stat.max]
    assert values == sorted(values)


def test_ratios_pair_the_times_of_one_iteration():
    # Both slow down together: the ratio of every pair is 4, however far the times drift.
    baseline = [float(4 * ms) for ms in (1, 2, 4, 8, 16)]
    assert paired_ratio(baseline, [1.0, 2.0, 4.0, 8.0, 16.0]) == Ratio(4.0, 4.0, 4.0)


def test_the_spread_of_ratios_is_their_10_to_90_percent_range():
    baseline = [float(ratio) for ratio in range(11)]
    assert paired_ratio(baseline, [1.0] * 11) == Ratio(median=5.0, low=1.0, high=9.0)


def test_a_pair_without_one_of_its_times_does_not_count():
    assert paired_ratio([2.0, 6.0, 8.0], [1.0]) == Ratio(2.0, 2.0, 2.0)
    assert paired_ratio([2.0, None, 8.0], [1.0, 1.0, 0.0]) == Ratio(2.0, 2.0, 2.0)


@pytest.mark.parametrize("baseline, other", [([], []), ([1.0], [0.0]), ([None], [1.0]), ([], [1])])
def test_without_a_usable_pair_there_is_no_ratio(baseline, other):
    assert paired_ratio(baseline, other) is None


@pytest.mark.parametrize(
    "first, other, equal",
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([1], [2], 0), ([5, 1], [4, 1], 0)],
)
def test_agreement_counts_equal_first_tokens(first, other, equal):
    assert agreement(first, other, "x", "y") == Agreement(equal, same_text=False)


def test_the_same_text_may_come_from_other_tokens():
    assert agreement([1, 2], [3], "ab", "ab") == Agreement(0, same_text=True)


def test_a_rate_without_time_is_none():
    assert rate(500, 250.0) == 2000.0
    assert rate(500, 0.0) is None
    assert rate(500, None) is None
