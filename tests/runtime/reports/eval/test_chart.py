from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageColor

from divprune.runtime.reports.eval import chart
from divprune.runtime.reports.eval.chart import _COLOURS, draw_chart
from tests.runtime.reports.eval.example_report import example_report, example_row


def draw(*rows):
    png = draw_chart(example_report(*rows))
    assert png is not None
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count(pixels: np.ndarray, colour: str) -> int:
    return int((np.abs(pixels - ImageColor.getrgb(colour)).max(axis=-1) < 12).sum())


def test_every_selector_has_a_colour_of_its_own():
    pixels = draw()
    assert pixels.shape == (470, 1100, 3)
    assert all(count(pixels, colour) > 200 for colour in _COLOURS[:2])
    assert count(pixels, _COLOURS[2]) == 0


def test_a_higher_score_lies_higher_and_more_tokens_further_right():
    low, high = (example_row("divprune", keep, kept, score, 10.0) for keep, kept, score in
                 ((0.1, 20, 0.6), (0.5, 98, 0.9)))  # fmt: skip
    pixels = draw(low, high)[:, :490]
    y, x = np.nonzero(np.abs(pixels - ImageColor.getrgb(_COLOURS[0])).max(axis=-1) < 12)
    left, right = x < x.min() + 5, x > x.max() - 5
    assert y[right].mean() < y[left].mean() - 50


def test_scores_of_zero_and_one_and_times_of_zero_are_drawn():
    rows = [example_row("divprune", 0.1, 1, 0.05, 0.0), example_row("divprune", 1.0, 1, 0.96, 0.0)]
    assert count(draw(*rows), _COLOURS[0]) > 50


def test_times_that_were_not_measured_draw_no_point_at_zero():
    rows = [
        example_row("divprune", keep, kept, 0.8, 12.0) for keep, kept in ((1.0, 196), (0.1, 20))
    ]
    timed, untimed = draw(*rows), draw(*(replace(row, ttft_ms=None) for row in rows))
    assert count(timed[:, 500:880], _COLOURS[0]) > 30
    assert count(untimed[:, 500:880], _COLOURS[0]) == 0
    assert (timed[:, :490] == untimed[:, :490]).all()


def texts_of(monkeypatch, *rows):
    """What is written, in which colour and where."""
    written = []
    original = chart._Pen.text

    def text(self, place, words, size, colour, anchor):
        written.append((words, colour, place))
        original(self, place, words, size, colour, anchor)

    monkeypatch.setattr(chart._Pen, "text", text)
    draw(*rows)
    return written


def test_the_axis_says_that_it_is_logarithmic(monkeypatch):
    words = [text for text, *_ in texts_of(monkeypatch)]
    assert "visual tokens, mean over the decoder layers (logarithmic)" in words
    assert not any("logarithmic" in text for text in words if "time" in text)


@pytest.mark.parametrize("keeps", [(1.0, 0.1), (1.0, 0.5, 0.25), (1.0, 0.25, 0.1), (0.5, 0.1)])
def test_every_point_has_its_keep_beside_it_in_its_colour(monkeypatch, keeps):
    rows = [
        example_row("divprune", keep, round(196 * keep), 0.4 + keep / 2, 10 + 20 * keep)
        for keep in keeps
    ]
    beside = [(text, colour) for text, colour, _ in texts_of(monkeypatch, *rows)]
    for keep in keeps:
        colour = chart._GREY if keep == 1.0 else _COLOURS[0]
        assert beside.count(("1.0" if keep == 1.0 else f"{keep:g}", colour)) == 2  # panels


def test_a_similarity_that_was_reached_is_written_as_it_was_asked(monkeypatch):
    rows = [
        example_row("divprune", 1.0, 196, 0.95, 30.0),
        replace(example_row("divprune", 0.2, 40, 0.8, 20.0), auto=0.8),
    ]
    assert "auto:0.8" in [text for text, *_ in texts_of(monkeypatch, *rows)]


def test_keeps_that_would_lie_on_each_other_are_written_once(monkeypatch):
    rows = [example_row(name, 0.1, 20, 0.6, 15.0) for name in ("divprune", "random", "scope")]
    found = [text for text, *_ in texts_of(monkeypatch, *rows)]
    assert found.count("0.1") == 2  # once a panel


def lines_of(monkeypatch, *rows):
    drawn = []
    original = chart._Pen.line

    def line(self, points, colour, width=1):
        drawn.append((colour, list(points)))
        original(self, points, colour, width)

    monkeypatch.setattr(chart._Pen, "line", line)
    draw(*rows)
    return drawn


@pytest.mark.parametrize("other", ["divprune-engine", "another-engine"])
def test_every_curve_ends_at_keep_1(monkeypatch, other):
    whole = replace(example_row("divprune", 1.0, 196, 0.95, 30.0), engine=other)
    rows = [whole, *(example_row(name, 0.1, 20, 0.6, 15.0) for name in ("divprune", "random"))]
    ends = {
        colour: points[-1]
        for colour, points in lines_of(monkeypatch, *rows)
        if colour in _COLOURS[:2] and len(points) == 2 and points[0][0] < points[1][0] - 100
    }
    assert len(ends) == 2
    assert len(set(ends.values())) == 1


def test_a_curve_ends_at_keep_1_of_its_own_engine_where_there_are_two(monkeypatch):
    rows = [
        example_row(name, keep, kept, score, 15.0 + 20 * keep)
        for name, best in (("divprune", 0.95), ("random", 0.85))
        for keep, kept, score in ((1.0, 196, best), (0.1, 20, 0.6))
    ]
    ends = [
        points[-1][1]
        for colour, points in lines_of(monkeypatch, *rows)
        if colour in _COLOURS[:2] and len(points) == 2 and points[0][0] < points[1][0] - 100
    ]
    assert len(set(ends)) == 2


def test_one_row_is_no_picture():
    assert draw_chart(example_report(example_row("divprune", 0.1, 20, 0.5, 10.0))) is None


def test_keeping_nothing_is_drawn_by_layer_as_one_curve_with_its_layers_written_beside():
    whole = example_row("divprune", 1.0, 196, 0.95, 30.0)
    vtw = [example_row("vtw", 0.0, 0, 0.5 + 0.1 * n, 10.0 + n, layer=n) for n in (1, 2, 3)]
    named = [example_row("vtw", 0.1, 20, 0.5 + 0.1 * n, 10.0 + n, layer=n) for n in (1, 2, 3)]
    pixels, one_each = draw(whole, *vtw), draw(whole, *named)
    assert [count(pixels, colour) > 200 for colour in _COLOURS[:3]] == [True, False, False]
    assert [count(one_each, colour) > 50 for colour in _COLOURS[:3]] == [True, True, True]


def test_a_layer_inside_the_llm_lies_where_its_mean_of_tokens_does():
    def left_edge(layer):
        ends = [
            example_row("divprune", keep, kept, 0.9, 0.0) for keep, kept in ((1.0, 196), (0.02, 4))
        ]
        pixels = draw(*ends, example_row("fastv", 0.1, 20, 0.8, 0.0, layer=layer))[:, :490]
        close = np.abs(pixels - ImageColor.getrgb(_COLOURS[1])).max(axis=-1) < 12
        return np.nonzero(close)[1].min()

    assert left_edge(None) < left_edge(1) - 50 < left_edge(3) - 100
