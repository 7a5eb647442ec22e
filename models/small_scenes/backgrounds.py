"""What lies behind the figures: dull colours, plain, noisy or structured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["HARD_BACKGROUNDS", "PLAIN_BACKGROUNDS", "paint_background"]

PLAIN_BACKGROUNDS = ("plain", "noise", "gradient", "stripes", "checkers")
HARD_BACKGROUNDS = ("clouds", "dots", "rings", "bricks")  # never seen in training


def paint_background(kind: str, edge: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A background of ``kind`` as uint8 [edge, edge, 3]."""
    first, second = _dull_colour(rng), _dull_colour(rng)
    blend = _PATTERNS[kind](edge, rng)[..., np.newaxis]
    picture = first + (second - first) * blend
    if kind == "noise":
        picture = first + rng.standard_normal((edge, edge, 3)) * rng.uniform(8, 22)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _dull_colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Grey from dark to middle, with a tint of at most 15 levels."""
    colour: NDArray[np.float64] = rng.uniform(25, 145) + rng.uniform(-15, 15, size=3)
    return colour


def _grid(edge: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0:edge, 0:edge].astype(np.float64)
    return y, x


def _plain(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return np.zeros((edge, edge))


def _gradient(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = x * np.cos(angle) + y * np.sin(angle)
    scaled: NDArray[np.float64] = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return scaled


def _stripes(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 24)
    waves = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    return np.clip(waves * 2 + 0.5, 0, 1)


def _checkers(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    side, shift = rng.integers(5, 17), rng.integers(0, 16)
    return (((y + shift) // side + (x + shift) // side) % 2).astype(np.float64)


def _clouds(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    total = np.zeros((edge, edge))
    for _ in range(6):
        fx, fy = rng.uniform(-0.12, 0.12, size=2)
        total += np.sin(fx * x + fy * y + rng.uniform(0, 2 * np.pi))
    return np.clip(total / 5 + 0.5, 0, 1)


def _dots(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    period = rng.integers(8, 15)
    distance = np.hypot(x % period - period / 2, y % period - period / 2)
    return (distance < period * rng.uniform(0.2, 0.35)).astype(np.float64)


def _rings(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    cy, cx = rng.uniform(0, edge, size=2)
    return np.clip(np.sin(np.hypot(y - cy, x - cx) * 2 * np.pi / rng.uniform(8, 22)) + 0.5, 0, 1)


def _bricks(edge: int, rng: np.random.Generator) -> NDArray[np.float64]:
    y, x = _grid(edge)
    height, width = rng.integers(7, 12), rng.integers(14, 25)
    row = y // height
    mortar = (y % height < 1.5) | ((x + row % 2 * width / 2) % width < 1.5)
    return mortar.astype(np.float64)


_PATTERNS = {
    "plain": _plain,
    "noise": _plain,
    "gradient": _gradient,
    "stripes": _stripes,
    "checkers": _checkers,
    "clouds": _clouds,
    "dots": _dots,
    "rings": _rings,
    "bricks": _bricks,
}
