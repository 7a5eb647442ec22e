from __future__ import annotations

import io
import os
import re

import pytest

from divprune.runtime.generation.result import GenerationResult, ImageResult, Memory, Timings
from divprune.runtime.reports.bench.live_table import LiveTable
from divprune.runtime.reports.bench.measure import Measurement, Sample
from tests.runtime.example_manifest import example_manifest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def measurement() -> Measurement:
    result = GenerationResult(
        text="x",
        token_ids=(1, 2),
        images=(ImageResult(tuple(range(10)), 10),),
        prompt_tokens=20,
        cached_tokens=0,
        finish_reason="length",
        timings=Timings(1.0, 2.0, 3.0, 4.0, 5.0, (6.0,)),
        memory=Memory(None, 1, None),
        backend="fake",
    )
    return Measurement({1.0: [Sample(result, 0.5)]})


@pytest.fixture(autouse=True)
def terminal_size(monkeypatch):
    monkeypatch.setattr("shutil.get_terminal_size", lambda **_: os.terminal_size((70, 12)))


def test_the_table_is_drawn_over_itself(measurement):
    out = Terminal()
    live = LiveTable(4, out)
    live.update(measurement, example_manifest())
    first = out.getvalue()
    live.update(measurement, example_manifest())
    second = out.getvalue().removeprefix(first)
    assert first.startswith("answer 1 of 4\n")
    assert re.search(r"^prefill +1\.0 +1 +4\.00", first, re.MULTILINE)
    lines = first.count("\n")
    assert second.startswith(f"\x1b[{lines}F\x1b[Janswer 2 of 4\n")
    live.close()
    assert out.getvalue().endswith(f"\x1b[{lines}F\x1b[J")


def test_no_line_wraps_or_scrolls_away(measurement):
    out = Terminal()
    LiveTable(4, out).update(measurement, example_manifest())
    lines = out.getvalue().splitlines()
    assert len(lines) <= 11
    assert max(map(len, lines)) <= 69


def test_the_warm_up_is_counted_before_there_is_a_table():
    out = Terminal()
    LiveTable(2, out).update(Measurement({0.1: [], 1.0: []}), example_manifest())
    assert out.getvalue() == "answer 1 of 4\n"


def test_nothing_is_drawn_where_there_is_no_terminal(measurement):
    out = io.StringIO()
    live = LiveTable(4, out)
    live.update(measurement, example_manifest())
    live.close()
    assert out.getvalue() == ""
