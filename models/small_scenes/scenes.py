"""Scenes of coloured figures, and their pictures.

A scene is drawn from a seed alone: the same split and number always give the same picture.
Figures never overlap. No two have nearly the same x, so "from left to right" is one order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from models.small_scenes.backgrounds import HARD_BACKGROUNDS, PLAIN_BACKGROUNDS, paint_background

__all__ = [
    "COLOURS",
    "IMAGE_SIZE",
    "SHAPES",
    "SIZES",
    "Figure",
    "Picture",
    "Scene",
    "Split",
    "make_scene",
    "render",
    "scene_rng",
]

IMAGE_SIZE = 112
MIDDLE = IMAGE_SIZE / 2
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 35, 35),
    "green": (40, 165, 50),
    "blue": (45, 70, 225),
    "yellow": (240, 215, 40),
    "purple": (160, 45, 185),
    "cyan": (50, 205, 225),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES: dict[str, tuple[float, float]] = {"small": (7.0, 9.0), "large": (12.5, 15.5)}  # radius, px

Split = Literal["train", "validation", "test", "hard"]
_SPLITS: tuple[Split, ...] = ("train", "validation", "test", "hard")
_SUPERSAMPLING = 3
_MIN_X_GAP = 5.0  # pixels between the centres of neighbours in x


@dataclass(frozen=True)
class Figure:
    """One figure. Lengths in pixels, ``turn`` in radians."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Figures from left to right, and what lies behind them."""

    figures: tuple[Figure, ...]
    background: str


@dataclass(frozen=True)
class Picture:
    """A rendered scene.

    Attributes:
        pixels: uint8 [112, 112, 3].
        owner: uint8 [336, 336], supersampled: 0 background, i + 1 figure i.
    """

    pixels: NDArray[np.uint8]
    owner: NDArray[np.uint8]


def scene_rng(seed: int, split: Split, number: int) -> np.random.Generator:
    """The random numbers of scene ``number``: no two splits share any."""
    return np.random.default_rng([seed, _SPLITS.index(split), number])


def make_scene(
    rng: np.random.Generator, split: Split, *, most: int = 8, large: float = 0.45
) -> Scene:
    """Draw a scene: 1 to 6 figures, in one of seven 7 or 8; 6 to 8 in the hard split.

    Args:
        rng: Where the scene comes from.
        split: Decides the number of figures and the backgrounds.
        most: Upper limit of the number of figures (for the curriculum).
        large: Probability that a figure is large.
    """
    hard = split == "hard"
    if hard:
        count = int(rng.integers(6, 9))
    else:
        count = int(rng.integers(7, 9)) if rng.random() < 1 / 7 else int(rng.integers(1, 7))
    backgrounds = HARD_BACKGROUNDS if hard else PLAIN_BACKGROUNDS
    background = str(rng.choice(backgrounds))
    while True:
        figures = _place(rng, min(count, most), large)
        if figures is not None:
            return Scene(tuple(sorted(figures, key=lambda figure: figure.x)), background)


def _place(rng: np.random.Generator, count: int, large: float) -> list[Figure] | None:
    """Try to place ``count`` figures without overlap; None when it became too tight."""
    figures: list[Figure] = []
    for _ in range(count):
        size = "large" if rng.random() < (large if count < 6 else large / 2) else "small"
        radius = float(rng.uniform(*SIZES[size]))
        for _attempt in range(40):
            x, y = rng.uniform(radius + 1, IMAGE_SIZE - radius - 1, size=2)
            if all(_apart(figure, x, y, radius) for figure in figures):
                break
        else:
            return None
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
        rgb = np.clip(np.array(COLOURS[colour]) + rng.integers(-14, 15, size=3), 0, 255)
        turn = float(rng.uniform(-0.25, 0.25))
        values = (int(rgb[0]), int(rgb[1]), int(rgb[2]))
        figures.append(Figure(shape, colour, size, float(x), float(y), radius, turn, values))
    return figures


def _apart(figure: Figure, x: float, y: float, radius: float) -> bool:
    distance = math.hypot(figure.x - x, figure.y - y)
    return abs(figure.x - x) >= _MIN_X_GAP and distance >= figure.radius + radius + 1.5


def render(scene: Scene, rng: np.random.Generator) -> Picture:
    """Paint the background, draw the figures antialiased, add a little sensor noise."""
    base = paint_background(scene.background, IMAGE_SIZE, rng)
    canvas = Image.fromarray(base.repeat(_SUPERSAMPLING, 0).repeat(_SUPERSAMPLING, 1))
    owner = Image.new("L", canvas.size, 0)
    draw, draw_owner = ImageDraw.Draw(canvas), ImageDraw.Draw(owner)
    for index, figure in enumerate(scene.figures):
        outline = _outline(figure)
        draw.polygon(outline, fill=figure.rgb)
        draw_owner.polygon(outline, fill=index + 1)
    small = np.asarray(canvas.reduce(_SUPERSAMPLING), np.float32)
    noise = rng.standard_normal(small.shape, dtype=np.float32) * np.float32(rng.uniform(0, 5))
    pixels = np.clip(np.rint(small + noise), 0, 255).astype(np.uint8)
    return Picture(pixels, np.asarray(owner))


def _outline(figure: Figure) -> list[tuple[float, float]]:
    """Corners of the figure in supersampled pixels."""
    radii, angles = _POLAR[figure.shape]
    radius = figure.radius * _SUPERSAMPLING
    turned = angles + figure.turn
    x = figure.x * _SUPERSAMPLING + radius * radii * np.sin(turned)
    y = figure.y * _SUPERSAMPLING - radius * radii * np.cos(turned)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _polar(points: list[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Corners (x right, y up) as radii and angles from the vertical."""
    x, y = np.array(points, np.float64).T
    return np.hypot(x, y), np.arctan2(x, y)


def _ring(count: int, radii: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    repeated = np.array([radii[index % len(radii)] for index in range(count)])
    return repeated, np.arange(count) * (2 * math.pi / count)


_A, _B = 0.3, 0.92  # half width and half length of the cross
_CROSS = [(-_A, _B), (_A, _B), (_A, _A), (_B, _A), (_B, -_A), (_A, -_A)]
_CROSS += [(-x, -y) for x, y in _CROSS]
_POLAR = {
    "circle": _ring(40, (0.92,)),
    "square": _polar([(-0.78, 0.78), (0.78, 0.78), (0.78, -0.78), (-0.78, -0.78)]),
    "triangle": _polar([(0.0, 0.95), (0.92, -0.72), (-0.92, -0.72)]),
    "star": _ring(10, (1.0, 0.42)),
    "cross": _polar(_CROSS),
}
