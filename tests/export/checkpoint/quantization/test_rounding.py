"""Codes, scales and zero points: bounds that hold for every group, and which way is better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.export.checkpoint.quantization.rounding import (
    METHODS,
    minimise_error,
    round_to_nearest,
)

FLOAT32 = np.dtype(np.float32)


def weights(seed: int, heavy: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, (20, 4, 32)) if heavy else rng.standard_normal((20, 4, 32))
    return values.astype(np.float32)


def decode(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None) -> np.ndarray:
    steps = codes.astype(np.float32) - (8 if zeros is None else zeros[..., None].astype(np.float32))
    return steps * scales[..., None].astype(np.float32)


@pytest.mark.parametrize("symmetric", [True, False])
@given(seed=st.integers(0, 2**31), offset=st.floats(-3, 3), size=st.floats(1e-4, 1e3))
def test_rounding_is_off_by_half_a_step_at_most(
    symmetric: bool, seed: int, offset: float, size: float
) -> None:
    groups = (weights(seed) + np.float32(offset)) * np.float32(size)
    codes, scales, zeros = round_to_nearest(groups, symmetric, FLOAT32)
    error = np.abs(decode(codes, scales, zeros) - groups)
    # A zero point is rounded as well: with one, an end of the range may be a step away.
    steps = 0.5 if symmetric else 1.0
    assert (error <= steps * scales[..., None] * (1 + 1e-3)).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_without_a_range_keep_their_value(method: str, symmetric: bool) -> None:
    groups = np.zeros((3, 2, 32), np.float32)
    groups[1] = 0.5
    groups[2] = -0.25
    found = decode(*METHODS[method](groups, symmetric, FLOAT32))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, groups, atol=0.5 / 7.5 / 2)
    assert (found[0] == 0).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("heavy", [True, False])
def test_the_smallest_error_is_never_larger_than_that_of_rounding(
    symmetric: bool, heavy: bool
) -> None:
    groups = weights(1, heavy)

    def errors(method: str) -> np.ndarray:
        found = decode(*METHODS[method](groups, symmetric, FLOAT32))
        return np.square(found - groups).sum(-1)

    plain, best = errors("rtn"), errors("mse")
    assert (best <= plain * (1 + 1e-4)).all()
    assert best.sum() < (0.93 if symmetric else 0.97) * plain.sum()


def test_zero_points_pay_where_weights_are_not_centred() -> None:
    groups = weights(2) + np.float32(2)

    def error(symmetric: bool) -> float:
        return float(np.square(decode(*minimise_error(groups, symmetric, FLOAT32)) - groups).sum())

    assert error(False) < 0.5 * error(True)


@pytest.mark.parametrize("method", METHODS)
def test_codes_are_those_of_the_scale_that_is_stored(method: str) -> None:
    """A scale that float16 holds badly must not make a code wrong."""
    groups = weights(3) * np.float32(2e-6)
    codes, scales, _ = METHODS[method](groups, True, np.dtype(np.float16))
    stored = scales.astype(np.float32)[..., None]
    positive = stored > 0
    nearest = np.clip(np.rint(groups / np.where(positive, stored, 1)) + 8, 0, 15)
    np.testing.assert_array_equal(codes, np.where(positive, nearest, 8))
