from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image, ImageColor

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
