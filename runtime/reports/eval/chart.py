"""The picture of an evaluation: score against tokens kept, and against time to first token.

Drawn with Pillow, which the device has anyway, at twice the size and scaled down: matplotlib
would save half of this file and add 77 MB to the device, a quarter of what an install may take.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.reports.eval.metrics import get_metric

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

    from divprune.runtime.reports.eval.report import EvalReport, Row

__all__ = ["draw_chart"]

_SCALE = 2
_WIDTH, _HEIGHT = 1100, 470
_LEFT, _TOP, _BOTTOM, _GAP = 58, 58, 52, 62
_LEGEND = 200
_TEXT, _GREY, _GRID, _WHITE = "#222222", "#777777", "#e6e6e6", "#ffffff"
# Okabe and Ito's colours, told apart with any kind of sight, and two more.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4b94", "#5a5a5a")
_DOT = 3.5
_LABEL = (34.0, 12.0)  # room of a label beside a point


@dataclass(frozen=True)
class _Panel:
    """A plot: its place, its scales and what they are called."""

    box: tuple[float, float, float, float]
    title: str
    x: Callable[[float], float]
    y: Callable[[float], float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def draw_chart(report: EvalReport) -> bytes | None:
    """A PNG; None where fewer than two rows have answers.

    A line for each selector joins its fractions and ends at keep 1.0, which is a dashed line
    across. Each point has its keep beside it, where there is room. Whiskers are 95 % intervals.
    """
    rows = [row for row in report.rows if row.answers]
    if len(rows) < 2:
        return None
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (_WIDTH * _SCALE, _HEIGHT * _SCALE), _WHITE)
    draw = _Pen(ImageDraw.Draw(canvas))
    metric = get_metric(report.metric).title
    title = f"{metric} in %, {report.data.name}; beside each point its keep"
    draw.text((_LEFT, 14), title, 16, _TEXT, "la")
    y_range = _y_range(rows)
    curves = _curves(rows)
    for panel, place in zip(_panels(rows, y_range), (_tokens, _ttft), strict=True):
        _draw_frame(draw, panel)
        _draw_baseline(draw, panel, rows, place)
        if not any(map(place, rows)):
            left, top, right, bottom = panel.box
            draw.text(((left + right) / 2, (top + bottom) / 2), "not measured", 13, _GREY, "mm")
        for style, curve in curves.values():
            joined = [*curve, *_end_of(curve, rows)]
            _draw_curve(draw, panel, style, [row for row in joined if place(row)], place)
        _draw_keeps(draw, panel, curves, [row for row in rows if place(row)], place)
    _draw_legend(draw, curves, rows)
    out = io.BytesIO()
    canvas.resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
    return out.getvalue()


@dataclass(frozen=True)
class _Style:
    """A colour, and how often all of them were taken before: dots, then rings, then squares."""

    colour: str
    lap: int = 0


class _Pen:
    """Pillow's drawing in the units of the finished picture."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw
        self._fonts: dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont] = {}

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=colour, width=round(width * _SCALE), joint="curve")

    def dot(self, x: float, y: float, style: _Style) -> None:
        box = [(place + sign * _DOT) * _SCALE for sign in (-1, 1) for place in (x, y)]
        if style.lap == 2:
            self._draw.rectangle(box, fill=style.colour)
        else:
            self._draw.ellipse(box, fill=_WHITE if style.lap else style.colour)
            self._draw.ellipse(box, outline=style.colour, width=round(1.5 * _SCALE))

    def text(
        self, place: tuple[float, float], text: str, size: int, colour: str, anchor: str
    ) -> None:
        from PIL import ImageFont

        font = self._fonts.setdefault(size, ImageFont.load_default(size * _SCALE))
        scaled = (place[0] * _SCALE, place[1] * _SCALE)
        self._draw.text(scaled, text, fill=colour, font=font, anchor=anchor)


def _tokens(row: Row) -> float:
    return row.layer_tokens


def _ttft(row: Row) -> float:
    return row.ttft_ms or 0.0


def _curves(rows: Sequence[Row]) -> dict[str, tuple[_Style, list[Row]]]:
    """Colour and rows, by tokens, of each selector, without keep 1.0, which belongs to all.

    A selector inside the language model is one for each layer, but where it keeps nothing, so
    that the layer is all there is to choose, its layers are one curve.
    """
    curves: dict[str, tuple[_Style, list[Row]]] = {}
    for row in sorted(rows, key=_tokens):
        if not row.is_baseline:
            lap, place = divmod(len(curves), len(_COLOURS))
            style = _Style(_COLOURS[place], lap % 3)
            name = row.method if row.num_kept else f"{row.selector} (by layer)"
            name += ", auto" if row.auto is not None else ""
            curves.setdefault(name, (style, []))[1].append(row)
    return curves


def _end_of(curve: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Keep 1.0 of a curve: that of its own engine, or the only one there is."""
    baselines = [row for row in rows if row.is_baseline]
    engines = {row.engine for row in curve}
    own = [row for row in baselines if row.engine in engines]
    return own[:1] or (baselines if len(baselines) == 1 else [])


def _y_range(rows: Sequence[Row]) -> tuple[float, float]:
    low = math.floor(10 * min(row.score.low for row in rows)) / 10
    return min(low, 0.9), 1.0


def _panels(rows: Sequence[Row], y_range: tuple[float, float]) -> Iterator[_Panel]:
    width = (_WIDTH - _LEFT - _LEGEND - _GAP) / 2
    tokens = [row.layer_tokens for row in rows]
    slowest = max(map(_ttft, rows)) or 1.0
    step = _nice_step(slowest / 5)
    ends = math.log(min(tokens) / 1.2), math.log(max(tokens) * 1.2)
    # Where tokens are dropped inside the language model, means lie anywhere.
    counts = sorted({row.num_kept for row in rows if row.layer is None} or tokens)
    scales: tuple[tuple[str, Callable[[float], float], list[tuple[float, str]]], ...] = (
        (
            "visual tokens, mean over the decoder layers (logarithmic)",
            lambda count: (math.log(count) - ends[0]) / (ends[1] - ends[0]),
            [(count, f"{round(count, 1):g}") for count in _apart(counts)],
        ),
        (
            "median time to first token, ms",
            lambda ms: ms / (slowest * 1.08),
            [(step * i, f"{step * i:g}") for i in range(int(slowest * 1.08 / step) + 1)],
        ),
    )
    for number, (title, unit, ticks) in enumerate(scales):
        left = _LEFT + number * (width + _GAP)
        box = (left, _TOP, left + width, _HEIGHT - _BOTTOM)
        yield _make_panel(box, title, unit, ticks, y_range)


def _make_panel(
    box: tuple[float, float, float, float],
    title: str,
    unit: Callable[[float], float],
    x_ticks: Sequence[tuple[float, str]],
    y_range: tuple[float, float],
) -> _Panel:
    left, top, right, bottom = box
    low, high = y_range
    step = 0.1 if high - low > 0.25 else 0.02
    ticks = [low + step * i for i in range(round((high - low) / step) + 1)]
    return _Panel(
        box,
        title,
        lambda value: left + unit(value) * (right - left),
        lambda score: bottom - (score - low) / (high - low) * (bottom - top),
        x_ticks,
        [(tick, f"{100 * tick:.0f}") for tick in ticks],
    )


def _apart(counts: Sequence[float]) -> list[float]:
    """Counts whose labels do not touch on a logarithmic scale, largest first."""
    room = math.log(counts[-1] / counts[0]) / 14 if counts[0] < counts[-1] else 1.0
    shown: list[float] = []
    for count in reversed(counts):
        if not shown or math.log(shown[-1] / count) > room:
            shown.append(count)
    return shown


def _draw_frame(draw: _Pen, panel: _Panel) -> None:
    left, top, right, bottom = panel.box
    for score, label in panel.y_ticks:
        draw.line([(left, panel.y(score)), (right, panel.y(score))], _GRID)
        draw.text((left - 8, panel.y(score)), label, 12, _GREY, "rm")
    for value, label in panel.x_ticks:
        draw.line([(panel.x(value), bottom), (panel.x(value), bottom + 4)], _GREY)
        draw.text((panel.x(value), bottom + 8), label, 12, _GREY, "ma")
    draw.line([(left, top), (left, bottom), (right, bottom)], _GREY)
    draw.text(((left + right) / 2, bottom + 30), panel.title, 13, _TEXT, "ma")


def _draw_baseline(
    draw: _Pen, panel: _Panel, rows: Sequence[Row], place: Callable[[Row], float]
) -> None:
    left, _, right, _ = panel.box
    for row in rows:
        if row.is_baseline:
            y, x = panel.y(row.score.value), left
            while x < right:
                draw.line([(x, y), (min(x + 5, right), y)], _GREY)
                x += 9
            _draw_points(draw, panel, _Style(_GREY), [row] if place(row) else [], place)


def _draw_curve(
    draw: _Pen, panel: _Panel, style: _Style, rows: Sequence[Row], place: Callable[[Row], float]
) -> None:
    points = [(panel.x(place(row)), panel.y(row.score.value)) for row in rows]
    if len(points) > 1:
        draw.line(points, style.colour, 1.8)
    _draw_points(draw, panel, style, [row for row in rows if not row.is_baseline], place)


def _draw_keeps(
    draw: _Pen,
    panel: _Panel,
    curves: dict[str, tuple[_Style, list[Row]]],
    rows: Sequence[Row],
    place: Callable[[Row], float],
) -> None:
    """What each point kept, or the layer where that is all there is to choose; none on another."""
    colours = {id(row): style.colour for style, curve in curves.values() for row in curve}
    taken: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row.score.value, reverse=True):
        x, y = panel.x(place(row)) + 7, panel.y(row.score.value) + 2
        if all(abs(x - left) > _LABEL[0] or abs(y - top) > _LABEL[1] for left, top in taken):
            taken.append((x, y))
            by_layer = row.layer is not None and not row.num_kept
            text = f"layer {row.layer}" if by_layer else row.asked
            draw.text((x, y), text, 11, colours.get(id(row), _GREY), "la")


def _draw_points(
    draw: _Pen, panel: _Panel, style: _Style, rows: Sequence[Row], place: Callable[[Row], float]
) -> None:
    for row in rows:
        x = panel.x(place(row))
        draw.line([(x, panel.y(row.score.low)), (x, panel.y(row.score.high))], style.colour, 1)
        draw.dot(x, panel.y(row.score.value), style)


def _draw_legend(
    draw: _Pen, curves: dict[str, tuple[_Style, list[Row]]], rows: Sequence[Row]
) -> None:
    x, y = _WIDTH - _LEGEND + 18, _TOP + 10.0
    if any(row.is_baseline for row in rows):
        for start in (x, x + 9, x + 18):
            draw.line([(start, y), (start + 5, y)], _GREY)
        draw.dot(x + 11, y, _Style(_GREY))
        draw.text((x + 30, y), "every token kept", 13, _TEXT, "lm")
        y += 22
    for name, (style, _) in curves.items():
        draw.line([(x, y), (x + 22, y)], style.colour, 1.8)
        draw.dot(x + 11, y, style)
        draw.text((x + 30, y), name, 13, _TEXT, "lm")
        y += 22


def _nice_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
