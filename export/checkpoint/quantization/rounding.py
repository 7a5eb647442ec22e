"""Floats to 4-bit codes, scales and zero points: two ways, both without data and without a GPU.

A group of weights w becomes scale · (code - zero), code 0..15. Symmetric groups have zero 8.

- ``rtn``: round to nearest on the grid that spans the group's extremes.
- ``mse``: the grid with the smallest squared error. Extremes are rare and cost all other
  weights resolution, so grids that clip them are tried (Choukroun et al., "Low-bit Quantization
  of Neural Networks for Efficient Inference", arXiv 1902.06822); then scale and codes are
  refined in turns, each the best for the other. Asymmetric grids shrink both ends alike.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_METHOD", "METHODS", "CodedGroups", "minimise_error", "round_to_nearest"]

Floats = NDArray[np.float32]
CodedGroups = tuple[NDArray[np.uint8], NDArray[np.floating], NDArray[np.uint8] | None]
"""Codes [..., block], scales [...] in the stored dtype, zeros [...] or None."""

_LEVELS = 15
_MIDDLE = 8.0
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)
_REFINEMENTS = 2


def round_to_nearest(groups: Floats, symmetric: bool, scale_dtype: np.dtype) -> CodedGroups:
    """Codes on the grid from the smallest to the largest weight of each group."""
    scales, zeros = _grid(groups, symmetric, 1.0)
    return _encode(groups, scales, zeros, symmetric, scale_dtype)


def minimise_error(groups: Floats, symmetric: bool, scale_dtype: np.dtype) -> CodedGroups:
    """Codes on the grid with the smallest squared error of those tried and refined."""
    scales, zeros = _grid(groups, symmetric, 1.0)
    best = np.full(scales.shape, np.inf, np.float32)
    for shrink in _SHRINKS:
        tried, tried_zeros = _grid(groups, symmetric, shrink)
        for _ in range(_REFINEMENTS):
            steps = _codes(groups, tried, tried_zeros) - tried_zeros[..., None]
            tried = _fit_scale(groups, steps, tried)
        rounded = tried.astype(scale_dtype).astype(np.float32)
        steps = _codes(groups, rounded, tried_zeros) - tried_zeros[..., None]
        error = np.square(groups - rounded[..., None] * steps).sum(-1)
        better = error < best
        best = np.where(better, error, best)
        scales, zeros = np.where(better, tried, scales), np.where(better, tried_zeros, zeros)
    return _encode(groups, scales, zeros, symmetric, scale_dtype)


METHODS: dict[str, Callable[[Floats, bool, np.dtype], CodedGroups]] = {
    "rtn": round_to_nearest,
    "mse": minimise_error,
}
DEFAULT_METHOD = "rtn"


def _grid(groups: Floats, symmetric: bool, shrink: float) -> tuple[Floats, Floats]:
    """Scale and zero of the grid over ``shrink`` times the range of each group.

    The symmetric grid reaches from -8 to 7 steps. A step of max / 7.5 puts both ends half a
    step from the extreme, so that nothing is off by more than any rounding is.
    """
    if symmetric:
        scales = np.abs(groups).max(-1) * np.float32(shrink / 7.5)
        return scales, np.full(scales.shape, _MIDDLE, np.float32)
    low = np.minimum(groups.min(-1), 0) * np.float32(shrink)
    high = np.maximum(groups.max(-1), 0) * np.float32(shrink)
    scales = (high - low) / np.float32(_LEVELS)
    return scales, np.clip(np.rint(-low * _inverse(scales)), 0, _LEVELS)


def _fit_scale(groups: Floats, steps: Floats, scales: Floats) -> Floats:
    """The scale with the smallest squared error for these steps: (w · steps) / (steps · steps)."""
    squared = np.square(steps).sum(-1)
    fitted: Floats = (groups * steps).sum(-1) / np.maximum(squared, 1)
    # A grid that turned around, or that no weight is on, is no improvement.
    improved: Floats = np.where(fitted > 0, fitted, scales)
    return improved


def _encode(
    groups: Floats, scales: Floats, zeros: Floats, symmetric: bool, scale_dtype: np.dtype
) -> CodedGroups:
    """Codes for scales as they will be stored: what fp16 does to a scale is rounded away here."""
    stored = scales.astype(scale_dtype)
    codes = _codes(groups, stored.astype(np.float32), zeros).astype(np.uint8)
    return codes, stored, None if symmetric else zeros.astype(np.uint8)


def _codes(groups: Floats, scales: Floats, zeros: Floats) -> Floats:
    codes = groups * _inverse(scales)[..., None]
    codes += zeros[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, _LEVELS, out=codes)


def _inverse(scales: Floats) -> Floats:
    """1 / scale, and 0 where a group is all zeros."""
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales > 0)
