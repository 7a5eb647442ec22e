from __future__ import annotations

import json

import pytest

from divprune.runtime.reports.bench.html_chart import Chart, make_chart
from divprune.runtime.reports.bench.report import STAGES, Report
from tests.runtime.reports.bench.example_pages import report


def chart_of(times: dict[float, float], *, predicted: bool = False) -> Chart | None:
    """A chart of runs whose times to first token are all alike."""
    example = report(*times)
    for run, ms in zip(example["runs"], times.values(), strict=True):
        run["stages"]["ttft"] |= dict.fromkeys(("mean", "p50", "p90", "p99", "min", "max"), ms)
        run["predicted"] = {"ttft": {"ms": 2 * ms, "bound": "memory", "achieved": None}}
        run["predicted"] = run["predicted"] if predicted else {}
    assert set(example["runs"][0]["stages"]) == set(STAGES)
    return make_chart(Report.from_json(json.dumps(example), "the report").runs)


def test_one_run_makes_no_curve():
    assert chart_of({0.1: 10.0}) is None


def test_marks_lie_at_their_fraction_and_time():
    chart = chart_of({1.0: 750.0, 0.5: 500.0})
    assert chart.y_ticks[0] == ("100.000", "0")
    assert chart.y_ticks[-1] == ("0.000", "1000")
    assert [(float(mark.x), float(mark.y)) for mark in chart.marks] == [(100, 25), (50, 50)]
    (line,) = chart.measured
    assert [float(place) for place in (line.x1, line.y1, line.x2, line.y2)] == [100, 25, 50, 50]
    assert chart.roofline == ()


def test_the_roofline_fits_into_the_plot_too():
    chart = chart_of({1.0: 750.0, 0.5: 500.0}, predicted=True)
    (line,) = chart.roofline
    assert 0 < float(line.y1) < float(line.y2) < float(chart.measured[0].y2)


def test_labels_that_would_overlap_are_left_out_but_not_those_at_the_ends():
    chart = chart_of(dict.fromkeys((1.0, 0.75, 0.5, 0.25, 0.1, 0.05, 0.01), 5.0))
    labelled = [mark.x for mark in chart.marks if mark.label]
    assert labelled == ["100.000", "75.000", "50.000", "25.000", "1.000"]


@pytest.mark.parametrize("ms", [0.0, 0.004, 3.3, 99.0, 1024.0, 123_456.0])
def test_ticks_are_few_and_round_and_cover_every_time(ms):
    chart = chart_of({1.0: ms, 0.5: ms / 2})
    assert 2 <= len(chart.y_ticks) <= 7
    assert all(len(text) <= 6 for _, text in chart.y_ticks)
    assert all(0 <= float(mark.y) <= 100 for mark in chart.marks)


def test_long_times_are_in_seconds():
    assert chart_of({1.0: 9000.0, 0.5: 1.0}).unit == "s"
    assert chart_of({1.0: 5000.0, 0.5: 1.0}).unit == "ms"
