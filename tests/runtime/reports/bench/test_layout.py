from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from divprune.runtime.directory.keep import describe_keep
from divprune.runtime.reports.bench.layout import (
    format_keep,
    format_ms,
    headline,
    render_csv,
    render_markdown,
    render_text,
    stage_table,
)
from divprune.runtime.reports.bench.report import STAGES, Power
from tests.runtime.reports.bench.made_up_report import made_up_report, made_up_run


@pytest.mark.parametrize(
    "ms, text",
    [
        (None, "-"),
        (0.0, "0.0000"),
        (0.00123, "0.0012"),
        (0.0123, "0.0123"),
        (1.5, "1.50"),
        (12.345, "12.3"),
        (99.9, "99.9"),
        (99.96, "100"),
        (1234.5, "1234"),
    ],
)
def test_times_have_three_digits(ms, text):
    assert format_ms(ms) == text


def test_fractions_are_written_as_on_the_command_line():
    assert [format_keep(keep) for keep in (1.0, 0.25, 0.1, 0.005)] == [
        "1.0", "0.25", "0.1", "0.005",
    ]  # fmt: skip


def test_the_table_has_every_stage_with_the_fractions_side_by_side():
    table = stage_table(made_up_report().runs)
    assert [row[1] for row in table.rows] == ["1.0", "0.25"] * len(STAGES)
    prefill = table.rows[2 * STAGES.index("prefill") :][:2]
    assert prefill == (
        ("prefill", "1.0", "4", "800", "801", "802", "800", "1.00", "-", "400 compute", "50 %"),
        ("", "0.25", "4", "200", "201", "202", "200", "1.00", "4.00 (3.50-4.50)", "100 compute",
         "50 %"),
    )  # fmt: skip


def test_stages_that_were_not_measured_are_left_out():
    run = made_up_run(1.0, 40, 800.0)
    assert "decode per token" in {row[0] for row in stage_table([run]).rows}
    shorter = replace(run, stages=replace(run.stages, decode_per_token=None, selection=None))
    labels = {row[0] for row in stage_table([shorter]).rows}
    assert len(labels) == len(STAGES) - 2
    assert "decode per token" not in labels


@pytest.mark.parametrize("render", [render_text, render_markdown])
def test_a_report_says_what_where_and_how(render):
    text = render(made_up_report())
    for fact in (
        "some/model", "Some Board", "15W", "CPU 1500 MHz", "2 threads", "4 rounds", "640 x 480",
        "20 text tokens", describe_keep(40, 40), describe_keep(10, 40), "other text, first 3",
        "3,072", "a red square", "the machine was busy", "divprune-edge 0.1.0",
    ):  # fmt: skip
        assert fact in text
    assert "INTERRUPTED" not in text


def test_an_interrupted_report_says_so():
    assert "INTERRUPTED" in render_text(made_up_report(interrupted=True))


def test_facts_that_are_unknown_are_left_out():
    report = made_up_report(device__power_mode=None, device__clocks=None, device__threads=None)
    assert headline(report)[1] == "Some Board, 4 cores, threads chosen by the backend"


def test_an_answer_cannot_draw_on_the_terminal():
    runs = (made_up_run(1.0, 40, 800.0, text="\x1b[2Jx\n\ny"),)
    text = render_text(made_up_report(runs=runs))
    assert "\x1b" not in text
    assert "[2Jx y" in text


def test_a_long_answer_is_shortened():
    runs = (made_up_run(1.0, 40, 800.0, text="word " * 1000),)
    assert max(map(len, render_text(made_up_report(runs=runs)).splitlines())) < 350


def test_csv_has_one_line_for_each_fraction_and_stage():
    rows = list(csv.DictReader(io.StringIO(render_csv(made_up_report()))))
    assert len(rows) == 2 * len(STAGES)
    (prefill,) = [row for row in rows if row["stage"] == "prefill" and row["keep"] == "0.25"]
    assert prefill == {
        "model": "some/model", "device": "Some Board", "backend": "onnxruntime 1.31.1 (CPU)",
        "dtype": "fp16", "keep": "0.25", "auto": "", "num_kept": "10", "prompt_tokens": "30",
        "new_tokens": "8", "stage": "prefill", "n": "4", "mean_ms": "200.0", "std_ms": "1.0",
        "p50_ms": "200.0", "p90_ms": "201.0", "p99_ms": "202.0", "min_ms": "199.0",
        "max_ms": "202.0",
        "speedup_median": "4.0", "speedup_low": "3.5", "speedup_high": "4.5",
        "roofline_ms": "100.0", "bound": "compute", "achieved": "0.5",
        "mean_w": "", "max_w": "", "joules_per_answer": "",
    }  # fmt: skip
    (vision,) = [row for row in rows if row["stage"] == "vision" and row["keep"] == "1.0"]
    assert (vision["speedup_median"], vision["roofline_ms"], vision["bound"]) == ("", "", "")


def test_power_is_shown_where_any_fraction_has_it():
    assert "power" not in render_text(made_up_report())
    measured = made_up_run(1.0, 40, 800.0, power=Power(7.54, 9.0, 30.0))
    report = made_up_report(runs=(measured, made_up_run(0.25, 10, 200.0)))
    lines = render_markdown(report).splitlines()
    for line in (
        "| mean power, W | 7.5 | - |",
        "| largest power, W | 9.0 | - |",
        "| energy per answer, J | 30.00 | - |",
    ):
        assert line in lines
    for row in csv.DictReader(io.StringIO(render_csv(report))):
        expected = ("7.54", "9.0", "30.0") if row["keep"] == "1.0" else ("", "", "")
        assert (row["mean_w"], row["max_w"], row["joules_per_answer"]) == expected
