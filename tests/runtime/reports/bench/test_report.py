from __future__ import annotations

import json

import pytest

from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.errors import DivPruneError
from divprune.runtime.reports.bench.compare import comparison, require_same_work
from divprune.runtime.reports.bench.html_report import render_html
from divprune.runtime.reports.bench.layout import render_markdown, render_text
from divprune.runtime.reports.bench.report import (
    Power,
    Prediction,
    Probe,
    Report,
    ReportError,
    Stat,
)
from tests.runtime.reports.bench.made_up_report import made_up_report, made_up_run, stat


def edited(**changes):
    return json.dumps(made_up_report().to_dict() | changes)


def test_a_report_comes_back_from_json_as_it_was():
    report = made_up_report()
    assert Report.from_json(report.to_json(), "a.json") == report
    assert json.loads(report.to_json()) == report.to_dict()


def test_lists_of_numbers_take_one_line():
    lines = made_up_report().to_json().splitlines()
    assert '      "kept_indices": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],' in lines
    assert any(line.strip() == '"keeps": [1.0, 0.25],' for line in lines)


def test_what_could_not_be_measured_comes_back_as_none():
    run = made_up_run(1.0, 40, 800.0)
    stages = {"selection": None, "decode_per_token": None}
    changed = json.loads(made_up_report(runs=(run,)).to_json())
    changed["runs"][0]["stages"] |= stages
    changed["runs"][0]["stages"]["merge"]["std"] = None
    changed["probe"] = None
    report = Report.from_json(json.dumps(changed), "a.json")
    assert report.runs[0].stages.selection is None
    assert report.runs[0].stages.decode_per_token is None
    assert report.runs[0].stages.merge.std is None
    assert report.probe is None


def test_whole_numbers_are_read_where_a_number_may_be_missing():
    changed = made_up_report().to_dict()
    changed["device"]["load_average"] = 2
    assert Report.from_json(json.dumps(changed), "a.json").device.load_average == 2.0


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "a.json is not an object"),
        ("{", "a.json is not valid JSON"),
        ("{}", "a.json is not a benchmark report"),
        ('{"schema_version": "1"}', "a.json is not a benchmark report"),
        ('{"schema_version": 0}', "a.json is not a benchmark report"),
        (edited(schema_version=2), "a.json is of a newer version"),
        (edited(extra=1), "a.json: extra is unknown"),
        (edited(runs=[]), "a.json: runs has a value it cannot have"),
        (edited(probe=3), "a.json: probe has the wrong type"),
        (edited(probe={"bandwidth_gb_s": 0, "gflops": 1}), "a.json: probe.bandwidth_gb_s"),
        (made_up_report().to_json().replace("800.0", "NaN"), "NaN is not a JSON number"),
        (made_up_report().to_json().replace("800.0", "1e999"), "runs[0].stages.prefill."),
        (made_up_report().to_json().replace('"prefill": {', '"prefil": {'), "prefil is unknown"),
    ],
)
def test_what_is_no_report_is_refused(text, message):
    with pytest.raises(ReportError) as caught:
        Report.from_json(text, "a.json")
    assert message in str(caught.value)


def test_a_newer_report_is_refused_with_the_command_that_helps():
    with pytest.raises(ReportError, match="install the divprune-edge that wrote it"):
        Report.from_json(edited(schema_version=99), "a.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Stat(2, 1.0, value, 1.0, 1.0, 1.0, 1.0, 1.0),
        lambda value: Stat(2, value, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0),
        lambda value: Prediction(value, "memory", None),
        lambda value: Prediction(1.0, "memory", value),
        lambda value: Probe(value, 1.0),
        lambda value: Power(1.0, value, 1.0),
        lambda value: made_up_run(1.0, 40, 800.0, prefill_tokens_per_s=value),
    ],
)
def test_no_metric_can_be_infinite_nan_or_negative(make, value):
    with pytest.raises(DivPruneError):
        make(value)


def test_stages_without_a_time_are_not_among_the_measured():
    stages = made_up_run(1.0, 40, 800.0).stages
    assert [name for name, _ in stages.measured()][:3] == ["preprocess", "vision", "selection"]
    assert dict(stages.measured())["prefill"] == stat(800.0)


def test_power_may_be_missing_in_a_file_and_comes_back_where_it_is_not():
    power = Power(7.5, 9.0, 30.0)
    runs = (made_up_run(1.0, 40, 800.0, power=power), made_up_run(0.25, 10, 200.0))
    report = made_up_report(runs=runs)
    fields = report.to_dict()
    assert fields["runs"][0]["power"] == {"mean_w": 7.5, "max_w": 9.0, "joules_per_answer": 30.0}
    assert fields["runs"][1].pop("power") is None
    assert Report.from_json(json.dumps(fields), "a.json") == report


def test_a_similarity_comes_back_and_may_be_missing_in_a_file():
    auto = made_up_run(0.25, 10, 200.0, auto=0.8)
    report = made_up_report(runs=(made_up_run(1.0, 40, 800.0), auto))
    again = Report.from_json(report.to_json(), "a.json")
    assert [run.asked for run in again.runs] == [1.0, AutoKeep(0.8)]
    older = report.to_dict()
    for run in older["runs"]:
        del run["auto"]
    assert [run.asked for run in Report.from_json(json.dumps(older), "a").runs] == [1.0, 0.25]


def test_a_similarity_is_shown_as_it_was_asked_for_in_every_form():
    auto = made_up_run(0.25, 10, 200.0, auto=0.8)
    report = made_up_report(runs=(made_up_run(1.0, 40, 800.0), auto), work__keeps=(1.0, "auto:0.8"))
    for text in (render_text(report), render_markdown(report), render_html(report.to_dict())):
        assert "keep auto:0.8" in text
        assert "keep 0.25" not in text
    assert comparison([report, report])[-1]["keep"] == "auto:0.8"
    unlike = made_up_report(runs=(made_up_run(1.0, 40, 800.0), made_up_run(0.25, 10, 200.0)))
    with pytest.raises(ReportError, match=r"(?s)kept fractions.*auto:0.8"):
        require_same_work([report, unlike], ["a", "b"])
