from __future__ import annotations

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from divprune.runtime.reports.bench.html_report import page_values, render_html
from divprune.runtime.reports.bench.html_view import verdict
from divprune.runtime.reports.bench.report import Report
from tests.runtime.reports.bench.example_pages import report, run


def view_of(example: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**page_values(Report.from_json(json.dumps(example), "the report")))


def facts_of(example: dict[str, Any]) -> dict[str, str]:
    return dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", render_html(example)))


def with_ratio(median: float, low: float, high: float) -> dict[str, Any]:
    example = report(1.0, 0.1)
    example["runs"][1]["ratios"]["ttft"] = {"median": median, "low": low, "high": high}
    return example


@pytest.mark.parametrize(
    "ratio, result",
    [
        ((2.9, 2.7, 3.1), "TTFT 2.9x faster"),
        ((14.4, 13.0, 15.0), "TTFT 14x faster"),
        ((1.04, 1.01, 1.06), "TTFT 1.04x faster"),
        ((1.3, 0.9, 1.6), "TTFT not faster within the spread"),
        ((0.5, 0.4, 0.6), "TTFT 2.0x slower"),
        ((0.0, 0.0, 0.0), "TTFT not faster within the spread"),
    ],
)
def test_the_headline_claims_no_more_than_the_spread_allows(ratio, result):
    headline = view_of(with_ratio(*ratio)).headline
    assert headline.result == result
    assert headline.detail == "at keep 0.1: 58 of 576 visual tokens"


def test_the_headline_takes_the_exported_fraction_and_not_the_fastest():
    view = view_of(report(0.25, 0.01, 1.0))
    assert "keep 0.25:" in view.headline.detail
    assert view.tiles[1].after == f"{144 + 42}"


@pytest.mark.parametrize(
    "keeps, result, missing",
    [
        ((0.1, 0.25), "TTFT 600 ms", "keep 1.0"),
        ((0.1,), "TTFT 438 ms", "keep 1.0"),
        ((1.0,), "TTFT 1413 ms", "a smaller fraction"),
    ],
)
def test_without_two_to_compare_the_headline_is_a_time(keeps, result, missing):
    view = view_of(report(*keeps))
    assert view.headline.result == result
    assert view.headline.spread == f"without {missing} there is nothing to compare it with"
    assert "Speed-up:" not in render_html(report(*keeps))
    assert [tile.before for tile in view.tiles] == ["", "", "", ""]


def test_tiles_show_before_and_after():
    time, tokens, cache, decode = view_of(report(1.0, 0.1, 0.05)).tiles
    assert (time.before, time.after) == ("1413 ms", "438 ms")
    assert (tokens.before, tokens.after) == ("618", "100")
    assert (cache.before, cache.after) == ("14.7 MiB", "3.5 MiB")
    assert (decode.before, decode.after) == ("15.6", "16.3")


def test_an_answer_of_one_token_has_no_decode_tile():
    example = report(1.0, 0.1)
    for measured in example["runs"]:
        measured["decode_tokens_per_s"] = None
    assert "Decode" not in [tile.label for tile in view_of(example).tiles]


def test_runs_go_from_all_tokens_to_the_fewest():
    view = view_of(report(0.1, 1.0, 0.25))
    assert [bar.label for bar in view.bars] == ["keep 1.0", "keep 0.25", "keep 0.1"]


def test_the_stages_of_a_bar_add_up_to_the_time_to_first_token():
    example = report(1.0, 0.1)
    longest = example["runs"][0]["stages"]["ttft"]["mean"]
    for bar, measured in zip(view_of(example).bars, example["runs"], strict=True):
        mean = measured["stages"]["ttft"]["mean"]
        widths = [float(width) for _, width, _, _ in bar.segments]
        assert sum(widths) == pytest.approx(100 * mean / longest, abs=0.01)
        assert bar.total == f"{mean:.0f} ms"


def test_narrow_segments_have_no_text_in_them():
    first_stages = {stage: text for stage, _, text, _ in view_of(report(1.0)).bars[0].segments}
    assert first_stages == {
        "preprocess": "", "vision": "231", "merge": "", "prefill": "1186", "first_sample": ""
    }  # fmt: skip


def test_the_table_has_every_stage_that_was_measured():
    example = report(1.0, 0.1)
    example["runs"][1]["stages"] |= {"selection": None, "decode_per_token": None}
    stages = {stage.title: stage.rows for stage in view_of(example).stages}
    assert next(iter(stages)) == "Time to first token"
    assert [len(rows) for rows in stages.values()] == [2, 2, 2, 1, 2, 2, 2, 1]
    ratio = example["runs"][1]["ratios"]["prefill"]
    assert stages["Prefill"][1] == (
        "0.1", "200", "212", "220", f"{ratio['median']:.1f}x",
        f"{ratio['low']:.2f} to {ratio['high']:.2f}", "202 \u00b1 6.06", "192 to 222", "10",
    )  # fmt: skip


def test_one_round_has_no_spread():
    view = view_of(report(0.1, runs=[run(0.1, iters=1, compared=False)]))
    assert view.stages[0].rows[0][-3:] == ("443", "443 to 443", "1")


def test_memory_that_is_not_known_is_left_out():
    example = report(1.0, 0.1)
    example["runs"][1]["peak_host_bytes"] = None
    cache, host = view_of(example).memory
    assert [label for label, _, _ in cache.bars] == ["1.0", "0.1"]
    assert [label for label, _, _ in host.bars] == ["1.0"]


@pytest.mark.parametrize(
    "agreement, words, colour",
    [
        (None, "not compared", ""),
        ({"equal_prefix": 0, "same_text": False}, "differs from the first token", "other"),
        ({"equal_prefix": 1, "same_text": False}, "differs after 1 equal token", "other"),
        ({"equal_prefix": 9, "same_text": False}, "differs after 9 equal tokens", "other"),
        ({"equal_prefix": 9, "same_text": True}, "same text as keep 1.0", "same"),
    ],
)
def test_answers_say_how_far_they_agree(agreement, words, colour):
    example = report(1.0, 0.1)
    example["runs"][1]["agreement"] = agreement
    all_tokens, pruned = view_of(example).runs
    assert verdict(all_tokens) == "all visual tokens"
    assert verdict(pruned) == words
    badges = re.findall('badge ?(same|other|)">([^<]*)', render_html(example))
    assert badges == [("", "all visual tokens"), (colour, words)]


def test_predictions_stand_beside_their_measurements():
    stages = {stage.title: stage.rows for stage in view_of(report(1.0, 0.1)).predictions}
    assert list(stages) == ["Time to first token", "Vision", "Prefill"]
    assert stages["Vision"][0] == ("1.0", "162", "229", "compute", "70 %", "70.0")


def test_facts_that_are_not_known_are_left_out():
    facts = facts_of(report(1.0))
    assert facts.keys().isdisjoint({"GPU", "Driver", "Power mode", "Revision", "Quantised"})
    assert facts["Memory"] == "23.5 GiB"
    assert facts["Longest sequence"] == "2,048 tokens"


def test_an_interrupted_benchmark_says_so():
    assert "Interrupted" not in render_html(report(1.0))
    assert "Interrupted" in render_html(report(1.0, interrupted=True))


def test_a_wild_spread_is_written_shortly():
    assert view_of(with_ratio(1.46, 0.2, 592.91)).stages[0].rows[1][4:6] == ("1.46x", "0.20 to 593")


def test_power_that_is_not_known_is_left_out():
    view = view_of(report(1.0, 0.1))
    assert view.power == []
    assert "Energy per answer" not in [tile.label for tile in view.tiles]


def test_power_and_energy_stand_side_by_side():
    example = report(1.0, 0.1)
    for measured, watts in zip(example["runs"], (12.0, 6.0), strict=True):
        measured["power"] = {"mean_w": watts, "max_w": 15.0, "joules_per_answer": 10 * watts}
    view = view_of(example)
    mean, largest, energy = view.power
    assert mean.bars == (("1.0", "100.000", "12.0 W"), ("0.1", "50.000", "6.0 W"))
    assert [text for _, _, text in largest.bars] == ["15.0 W", "15.0 W"]
    assert [text for _, _, text in energy.bars] == ["120 J", "60.00 J"]
    tile = view.tiles[-1]
    assert (tile.before, tile.after, tile.note) == ("120 J", "60.00 J", "at 6.0 W")
