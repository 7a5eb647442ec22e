from __future__ import annotations

import numpy as np
import pytest

from divprune.runtime.reports.eval.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_is_the_published_one(successes, trials, low, high):
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def test_the_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        right = rng.random(150) < 0.7
        counts = np.stack((right, np.ones(150)), axis=1).astype(float)
        low, high = bootstrap(counts, mean, resamples=400, seed=trial)
        inside += low <= 0.7 <= high
    assert 0.90 <= inside / 200 <= 0.99


def test_the_bootstrap_draws_whole_pictures():
    """Ten questions that stand and fall together are as little evidence as one."""
    rng = np.random.default_rng(2)
    right = (rng.random(100) < 0.5).astype(float)
    one = np.stack((right, np.ones(100)), axis=1)
    low, high = bootstrap(one, mean)
    assert bootstrap(10 * one, mean) == pytest.approx((low, high))
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)


def test_the_bootstrap_is_repeatable_and_the_same_in_chunks(monkeypatch):
    counts = np.random.default_rng(3).random((50, 2))
    whole = bootstrap(counts, mean)
    assert bootstrap(counts, mean) == whole
    monkeypatch.setattr("divprune.runtime.reports.eval.intervals._CHUNK", 700)
    assert bootstrap(counts, mean) == pytest.approx(whole)
