"""Similarity matrices of all kinds that a selection may meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["KINDS", "SHAPES", "matrix"]

Matrix = npt.NDArray[np.float32]
Rng = np.random.Generator


def _cosines(rng: Rng, n: int) -> Matrix:
    rows = rng.standard_normal((n, 8), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def _coarse(rng: Rng, n: int) -> Matrix:
    rows = rng.integers(-2, 3, (n, 3)).astype(np.float32)
    return rows @ rows.T


def _duplicates(rng: Rng, n: int) -> Matrix:
    few = _cosines(rng, max(1, n // 4))
    picks = rng.integers(0, len(few), n)
    return few[np.ix_(picks, picks)]


def _equal(rng: Rng, n: int) -> Matrix:
    return np.full((n, n), rng.choice([0.0, -0.0, 1.0, -1.0]), np.float32)


def _signed_zeros(rng: Rng, n: int) -> Matrix:
    return rng.choice(np.array([0.0, -0.0, 1e-45, -1e-45], np.float32), (n, n), p=_RARE)


def _denormals(rng: Rng, n: int) -> Matrix:
    smallest = np.float32(1e-45)
    return (rng.integers(-9, 10, (n, n)) * smallest).astype(np.float32)


def _unsymmetric(rng: Rng, n: int) -> Matrix:
    return rng.random((n, n), np.float32) - np.float32(0.5)


def _wild(rng: Rng, n: int) -> Matrix:
    powers = rng.uniform(-44, 38, (n, n))
    return (10.0**powers * rng.choice([-1.0, 1.0], (n, n))).astype(np.float32)


_RARE = [0.45, 0.45, 0.05, 0.05]
KINDS: dict[str, Callable[[Rng, int], Matrix]] = {
    "cosines": _cosines,
    "coarse": _coarse,
    "duplicates": _duplicates,
    "equal": _equal,
    "signed zeros": _signed_zeros,
    "denormals": _denormals,
    "unsymmetric": _unsymmetric,
    "wild": _wild,
}


def _shapes() -> Iterator[tuple[int, int]]:
    """N around the borders of lanes, warps and blocks; K at its borders and between."""
    for n in (1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 256):
        yield from ((n, k) for k in sorted({1, min(2, n), (n + 1) // 2, max(1, n - 1), n}))
    for n in (575, 576, 577, 991, 993, 1023):
        yield from ((n, 1), (n, 33), (n, 64))
    yield from ((576, 58), (1024, 1024), (1025, 65), (1500, 32), (2048, 31), (2880, 288))


SHAPES = list(_shapes())


def matrix(kind: str, num_tokens: int) -> Matrix:
    """The matrix [N, N] of a kind; always the same one."""
    rng = np.random.default_rng([list(KINDS).index(kind), num_tokens])
    return KINDS[kind](rng, num_tokens)
