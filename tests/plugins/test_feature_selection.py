"""Selections from float16 features follow the exact similarities, however sums are rounded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from divprune.plugins import feature_selection
from divprune.plugins.feature_selection import (
    FeatureSelection,
    error_bound,
    exact_similarity,
    plan_workspace,
)
from divprune.plugins.many_blocks import BlocksLaunch
from divprune.runtime.errors import OptionError, UnsupportedError
from tests.plugins.emulator import EmulatedManyDriver
from tests.plugins.lapses import LAPSES, REFINEMENT, WIDTH
from tests.plugins.many_runner import ManyRunner

divprune = pytest.importorskip(
    "divprune.export.selection.divprune", reason="the reference belongs to the export side"
)
Half = npt.NDArray[np.float16]
Rng = np.random.Generator


def _normal(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    return rng.standard_normal((n, width))


def _duplicates(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    few = _normal(rng, -(-n // 5), width)
    return few[rng.integers(0, len(few), n)]


def _near(rng: Rng, n: int, width: int) -> Half:
    """Duplicates that differ in the last bit of one number: closer than the matrix can tell."""
    rows = _duplicates(rng, n, width).astype(np.float16)
    place = np.arange(n), rng.integers(0, width, n)
    rows[place] = np.nextafter(rows[place], rng.choice([-1, 1], n).astype(np.float16) * 9)
    return rows


def _bunch(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    """All of them in nearly the same direction."""
    return _normal(rng, 1, width) + 1e-3 * _normal(rng, n, width)


def _zeros(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    return _normal(rng, n, width) * (rng.random((n, 1)) < 0.7)


def _equal(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    return np.full((n, width), 0.3)


def _integers(rng: Rng, n: int, width: int) -> npt.NDArray[np.int64]:
    return rng.integers(-1, 2, (n, width)) * (rng.random((n, width)) < 0.1)


def _sizes(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    """From denormal numbers to the largest."""
    return _normal(rng, n, width) * 10.0 ** rng.uniform(-6, 4, (n, 1))


def _cancelling(rng: Rng, n: int, width: int) -> npt.NDArray[np.float64]:
    """Sums that are small beside what is added: each number's opposite is there too, nearly."""
    half = _normal(rng, n, width // 2) * 1000
    return np.concatenate([half, rng.integers(-3, 4, half.shape) - half], axis=1)


KINDS: dict[str, Callable[[Rng, int, int], npt.NDArray[np.generic]]] = {
    "normal": _normal,
    "duplicates": _duplicates,
    "near": _near,
    "bunch": _bunch,
    "zeros": _zeros,
    "equal": _equal,
    "integers": _integers,
    "sizes": _sizes,
    "cancelling": _cancelling,
}
# N, K, width, blocks, tokens a thread.
SHAPES = [(1, 1, 32, 1, 1), (33, 33, 96, 2, 1), (130, 20, WIDTH, 3, 2)]


def _features(kind: str, n: int, width: int) -> Half:
    rng = np.random.default_rng([list(KINDS).index(kind), n])
    return KINDS[kind](rng, n, width).astype(np.float16)


def _wrong(
    runner: ManyRunner, features: Half, num_kept: int, blocks: int, tokens: int
) -> list[str]:
    """The methods whose order or cover is not that of the exact similarities."""
    exact = divprune.Gram(exact_similarity(features))
    order, cover = divprune.choose_max_min(exact, num_kept)
    threads = -(-len(features) // (32 * blocks * tokens)) * 32
    wrong = []
    for method in runner.methods:
        plan = BlocksLaunch(f"{method}_{tokens}", blocks, threads)
        found = runner.select(features, num_kept, method, plan)
        if found[0] != order.tolist() or not np.array_equal(found[1], cover):
            wrong.append(method)
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_cover_are_those_of_the_exact_similarities(
    many_runner: ManyRunner, kind: str
) -> None:
    for num_tokens, num_kept, width, blocks, tokens in SHAPES:
        features = _features(kind, num_tokens, width)
        assert _wrong(many_runner, features, num_kept, blocks, tokens) == []
        errors = np.abs(many_runner.gram.astype(np.float64) - exact_similarity(features))
        assert errors.max() <= error_bound(width)


@pytest.mark.parametrize("kind", ["near", "bunch"])
def test_matrix_alone_would_give_another_order(many_runner: ManyRunner, kind: str) -> None:
    features = _features(kind, 90, WIDTH)
    assert _wrong(many_runner, features, 90, 3, 1) == []
    expected = divprune.greedy_max_min(exact_similarity(features), 90)
    assert not np.array_equal(divprune.greedy_max_min(many_runner.gram, 90), expected)


def test_every_tile_of_the_matrix_is_written(many_runner: ManyRunner) -> None:
    """Tiles have 128 rows and are taken eight rows at a time."""
    features = _features("normal", 1100, 32)
    plan = BlocksLaunch("grid_4", 3, 96)
    many_runner.select(features, 1, "grid", plan)
    wide = features.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    assert np.abs(many_runner.gram - wide @ wide.T).max() <= error_bound(32)


def test_every_order_of_sums_gives_the_same_order(many_driver: EmulatedManyDriver) -> None:
    features = _features("near", 70, WIDTH)
    for schedule in range(3):  # and tensor cores that add 4, 8 or 16 products at once
        many_driver.set_schedule(schedule)
        assert _wrong(ManyRunner(many_driver), features, 40, 2, 2) == []


@pytest.mark.parametrize("kind", ["normal", "duplicates", "near", "bunch", "integers"])
def test_errors_up_to_the_bound_change_nothing(lapsing: EmulatedManyDriver, kind: str) -> None:
    lapsing.lack(list(LAPSES).index("errors within the bound"))
    assert _wrong(ManyRunner(lapsing), _features(kind, 90, WIDTH), 40, 3, 1) == []


@pytest.mark.parametrize("lapse", REFINEMENT)
def test_kernel_that_lacks_a_part_fails(lapsing: EmulatedManyDriver, lapse: str) -> None:
    lapsing.lack(list(LAPSES).index(lapse))
    features = _features("near", 150, WIDTH)
    assert _wrong(ManyRunner(lapsing), features, 60, 3, 2) == ["grid", "cluster"]


def test_bound_of_zero_is_noticed(
    many_driver: EmulatedManyDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_selection, "error_bound", lambda width: 0.0)
    runner = ManyRunner(many_driver)
    assert _wrong(runner, _features("near", 150, WIDTH), 60, 3, 2) == ["grid", "cluster"]


def test_exact_similarity_is_the_rounded_cosine() -> None:
    features = _features("duplicates", 40, 96)
    features[7] = 0
    found = exact_similarity(features)
    wide = features.astype(np.float64)
    norms = np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    assert np.abs(found - wide @ wide.T / (norms @ norms.T)).max() < 2**-24
    assert np.array_equal(found, found.T)
    assert found.max() == 1
    assert not found[7].any()


def test_bound_grows_with_the_width() -> None:
    assert 6e-6 < error_bound(32) < error_bound(4096) < 1.5e-5


def test_parts_of_the_workspace_do_not_overlap() -> None:
    space = plan_workspace(300, 70)
    starts = [space.norms, space.inverse, space.gram, space.nearest, space.seed, space.least]
    starts += [space.inbox, space.chosen, space.num_bytes]
    needed = [2400, 1200, 360000, 1200, 8, 4, 1024, 284]
    room = np.diff(starts)
    assert (room >= needed).all()
    assert all(start % 256 == 0 for start in starts)


def _launch(driver: EmulatedManyDriver, num_tokens: int, width: int, num_kept: int) -> None:
    sizes = {"num_tokens": num_tokens, "width": width, "num_kept": num_kept}
    FeatureSelection(driver, "grid").launch(0, 0, 0, 0, **sizes)


def test_shapes_that_do_not_fit_are_refused(many_driver: EmulatedManyDriver) -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)multiple of 32.*\[100, 33\]"):
        _launch(many_driver, 100, 33, 10)
    with pytest.raises(UnsupportedError, match="1 to 10240"):
        _launch(many_driver, 10241, 64, 10)
    with pytest.raises(OptionError, match="cannot be kept"):
        _launch(many_driver, 100, 64, 101)
