"""Questions about a scene, with the one right answer.

A figure is only asked about by a description that fits no other, and only where the answer has
a margin: what lies on the middle line has no quadrant, what is nearly level is not "above".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from models.small_scenes.scenes import COLOURS, MIDDLE, SHAPES, Figure, Scene

__all__ = ["KINDS", "NUMBERS", "Question", "ask", "words"]

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_WORDS = (
    "what",
    "colour",
    "is",
    "the",
    "shape",
    "size",
    "object",
    "objects",
    "where",
    "how",
    "many",
    "are",
    "there",
    "a",
    "left",
    "of",
    "right",
    "above",
    "below",
    "top",
    "bottom",
    "yes",
    "no",
    "describe",
    "picture",
    "small",
    "large",
)
_MIDDLE_MARGIN = 6.0  # pixels between a centre and the middle line
_RELATION_MARGIN = 12.0  # pixels between two centres along the axis asked about


@dataclass(frozen=True)
class Question:
    """A question, its answer, and what it asks for."""

    kind: str
    text: str
    answer: str


def ask(scene: Scene, kind: str, rng: np.random.Generator) -> Question | None:
    """One random question of ``kind``, or None where the scene allows none."""
    return _MAKERS[kind](scene, rng)


def _pick(rng: np.random.Generator, options: list[tuple[str, str]], kind: str) -> Question | None:
    """Any answer equally often, then any question with that answer."""
    if not options:
        return None
    answers = sorted({answer for _, answer in options})
    answer = answers[int(rng.integers(len(answers)))]
    texts = [text for text, given in options if given == answer]
    return Question(kind, texts[int(rng.integers(len(texts)))], answer)


def _unique(scene: Scene, *fields: str) -> Iterator[tuple[Figure, tuple[str, ...]]]:
    """Figures that are the only ones with their values of ``fields``."""
    keys = [tuple(str(getattr(figure, field)) for field in fields) for figure in scene.figures]
    counts = Counter(keys)
    for figure, key in zip(scene.figures, keys, strict=True):
        if counts[key] == 1:
            yield figure, key


def _colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    short = [
        (f"What colour is the {shape}?", figure.colour)
        for figure, (shape,) in _unique(scene, "shape")
    ]
    long = [
        (f"What colour is the {size} {shape}?", figure.colour)
        for figure, (size, shape) in _unique(scene, "size", "shape")
    ]
    return _pick(rng, short + long, "colour")


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    short = [
        (f"What shape is the {colour} object?", figure.shape)
        for figure, (colour,) in _unique(scene, "colour")
    ]
    long = [
        (f"What shape is the {size} {colour} object?", figure.shape)
        for figure, (size, colour) in _unique(scene, "size", "colour")
    ]
    return _pick(rng, short + long, "shape")


def _size(scene: Scene, rng: np.random.Generator) -> Question | None:
    options = [
        (f"What size is the {colour} {shape}?", figure.size)
        for figure, (colour, shape) in _unique(scene, "colour", "shape")
    ]
    return _pick(rng, options, "size")


def _position(scene: Scene, rng: np.random.Generator) -> Question | None:
    options = []
    for figure, (colour, shape) in _unique(scene, "colour", "shape"):
        if min(abs(figure.x - MIDDLE), abs(figure.y - MIDDLE)) >= _MIDDLE_MARGIN:
            row = "top" if figure.y < MIDDLE else "bottom"
            column = "left" if figure.x < MIDDLE else "right"
            options.append((f"Where is the {colour} {shape}?", f"{row} {column}"))
    return _pick(rng, options, "position")


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    if rng.random() < 1 / 3:
        return Question("count", "How many objects are there?", NUMBERS[len(scene.figures)])
    colours = Counter(figure.colour for figure in scene.figures)
    shapes = Counter(figure.shape for figure in scene.figures)
    options = [
        (f"How many {colour} objects are there?", NUMBERS[colours[colour]]) for colour in COLOURS
    ]
    options += [
        (f"How many {_plural(shape)} are there?", NUMBERS[shapes[shape]]) for shape in SHAPES
    ]
    return _pick(rng, options, "count")


def _presence(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Half yes; a no shares colour or shape with a figure wherever it can."""
    pairs = {(figure.colour, figure.shape) for figure in scene.figures}
    near = sorted(
        {(colour, figure.shape) for figure in scene.figures for colour in COLOURS}
        | {(figure.colour, shape) for figure in scene.figures for shape in SHAPES}
    )
    options = [
        (f"Is there a {colour} {shape}?", "yes" if (colour, shape) in pairs else "no")
        for colour, shape in near
    ]
    return _pick(rng, options, "presence")


def _relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    options = []
    for (one, a), (other, b) in permutations(_unique(scene, "colour", "shape"), 2):
        for axis, less, more in (("x", "left of", "right of"), ("y", "above", "below")):
            gap = getattr(other, axis) - getattr(one, axis)
            if abs(gap) >= _RELATION_MARGIN:
                for word, holds in ((less, gap > 0), (more, gap < 0)):
                    text = f"Is the {a[0]} {a[1]} {word} the {b[0]} {b[1]}?"
                    options.append((text, "yes" if holds else "no"))
    return _pick(rng, options, "relation")


def _description(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Everything, from left to right."""
    parts = [f"{figure.size} {figure.colour} {figure.shape}" for figure in scene.figures]
    return Question("description", "Describe the picture.", ", ".join(parts))


def _plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "colour": _colour,
    "shape": _shape,
    "size": _size,
    "count": _count,
    "presence": _presence,
    "relation": _relation,
    "position": _position,
    "description": _description,
}
KINDS = tuple(_MAKERS)


def words() -> list[str]:
    """Every word that a question or an answer can hold, in a fixed order."""
    plurals = [_plural(shape) for shape in SHAPES]
    return list(dict.fromkeys([*_WORDS, *COLOURS, *SHAPES, *plurals, *NUMBERS]))
