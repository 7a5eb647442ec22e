"""A question of a known number of tokens in the random checkpoint's own vocabulary."""

from __future__ import annotations

import random

__all__ = ["question"]

_WORDS = ("biruve", "benegu", "bofuno", "bekibo", "bebena", "borero", "bereta", "banali")
_COUNT = 34  # with the template around them 60 tokens, the picture's left out


def question(numbers: random.Random) -> str:
    """As many one-token words, chosen anew each time so that no cache has seen them."""
    return " ".join(numbers.choice(_WORDS) for _ in range(_COUNT))
