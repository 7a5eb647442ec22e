"""DivPrune's definition evaluated word by word, slowly, in float64.

Written from the text of the method and sharing no code with the package:

    The first token is the one whose most similar other token is least similar. Then,
    repeatedly: of the tokens not selected yet, the one whose largest similarity to the
    selected ones is smallest. Ties go to the lowest index.

A decision's *margin* is how far its best candidate lies before the second best. Two
evaluations whose similarities differ by less than half the smallest margin must agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Choice:
    """The order of the selected tokens and the smallest margin met on the way."""

    order: list[int]
    margin: float


def cosines(features: Matrix) -> npt.NDArray[np.float64]:
    """Cosine similarities [N, N], norms clamped at 1e-12."""
    rows = np.asarray(features, np.float64)
    unit = np.array([row / max(math.sqrt(math.fsum(row * row)), 1e-12) for row in rows])
    gram: npt.NDArray[np.float64] = unit @ unit.T
    return gram


def choose(gram: Matrix, num_kept: int) -> Choice:
    """The definition, evaluated on similarities [N, N]."""
    order: list[int] = []
    margin = math.inf
    for _ in range(num_kept):
        scores = scores_after(gram, order)
        best = min(scores, key=lambda token: (scores[token], token))
        rest = [score for token, score in scores.items() if token != best]
        margin = min([margin, *(score - scores[best] for score in rest)])
        order.append(best)
    return Choice(order, margin)


def scores_after(gram: Matrix, selected: list[int]) -> dict[int, float]:
    """What the next decision minimises, for each token that may still be chosen."""
    tokens = range(len(gram))
    if not selected:
        return {i: _largest(gram[i], excluding=i) for i in tokens}
    free = set(tokens).difference(selected)
    return {i: max(float(gram[j, i]) for j in selected) for i in sorted(free)}


def largest_regret(gram: Matrix, order: list[int]) -> float:
    """By how much the worst decision of ``order`` missed the best score open to it."""
    regret = 0.0
    for step, token in enumerate(order):
        scores = scores_after(gram, order[:step])
        regret = max(regret, scores[token] - min(scores.values()))
    return regret


def covers(gram: Matrix, order: list[int]) -> list[float]:
    """After each choice: the least similarity of a token left to its nearest choice, or 1."""
    steps = (scores_after(gram, order[:count]) for count in range(1, len(order) + 1))
    return [min([1.0, *scores.values()]) for scores in steps]


def _largest(row: Matrix, excluding: int) -> float:
    others = np.delete(row, excluding)
    return float(others.max()) if others.size else -math.inf
