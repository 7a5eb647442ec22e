"""95 % confidence intervals of scores, and of differences between two runs.

A share gets Wilson's interval (1927), which takes the questions as independent. What is
compared answers the *same* questions, several of them about the same picture, so differences
(and F1) get a percentile bootstrap that draws whole pictures: seeded, hence repeatable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RESAMPLES", "bootstrap", "wilson"]

RESAMPLES = 2000
_Z = 1.959963984540054  # 97.5 % of the normal distribution lies below
_CHUNK = 4_000_000  # draws held at a time


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share, in [0, 1]; all of it where nothing was tried."""
    if trials == 0:
        return 0.0, 1.0
    share, z2 = successes / trials, _Z * _Z
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    spread = share * (1 - share) / trials + z2 / (4 * trials * trials)
    half = _Z * math.sqrt(spread) / (1 + z2 / trials)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(
    counts: NDArray[np.float64],
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of sums, when groups are drawn with replacement.

    Args:
        counts: float [groups, m], what each group (a picture) adds.
        statistic: From sums float [draws, m] to values float [draws].
        resamples: How many times as many groups as there are get drawn.
        seed: Of the draws.
    """
    groups = len(counts)
    rng = np.random.default_rng(seed)
    chance = np.full(groups, 1 / groups)
    values, left = [], resamples
    while left:
        draws = min(left, max(1, _CHUNK // groups))
        times = rng.multinomial(groups, chance, size=draws)
        values.append(statistic(times @ counts))
        left -= draws
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5))
    return float(low), float(high)
