from __future__ import annotations

from dataclasses import replace

from divprune.runtime.reports.eval.layout import render_markdown, render_text
from tests.runtime.reports.eval.example_report import example_report, example_row


def test_the_table_shows_score_interval_and_what_is_lost():
    text = render_text(example_report())
    (row,) = (line for line in text.splitlines() if "20 of 196" in line and "random" in line)
    for piece in ("20 of 196", "41.0", "36.0 to 45.0", "-54.0", "-59.0 to -49.0"):
        assert piece in row


def test_headings_say_what_a_change_is_from_and_keep_1_is_called_so():
    lines = render_text(example_report()).splitlines()
    heading = next(line for line in lines if line.startswith("engine"))
    end = heading.index("change from keep 1.0") + len("change from keep 1.0")
    (row,) = (line for line in lines if "random" in line and "49 of 196" in line)
    assert row[:end].endswith(" -35.0")
    first = next(line for line in lines if line.startswith("divprune-engine"))
    assert first.split()[:3] == ["divprune-engine", "divprune", "1.0"]


def test_failures_are_said_and_rows_without_answers_show_no_score():
    row = replace(example_row("divprune", 0.1, 20, 0.5, 1.0), answers=0, errors=7, ttft_ms=None,
                  difference=None, categories={})  # fmt: skip
    text = render_text(example_report(row, notes=("a note",)))
    assert "7 answers failed and are in no score" in text
    assert "a note" in text
    assert "50.0" not in text


def test_markdown_links_the_picture_and_escapes_names():
    page = render_markdown(replace(example_report(), model="a|b_c"), "chart.png")
    assert "](chart.png)" in page
    assert "a\\|b\\_c" in page
    assert "| divprune-engine | divprune | 0.25 | 49 of 196 | 88.0 |" in page
