"""Each selector against its definition, evaluated slowly and without the package's code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from divprune.export.selection import Setting, get_selector
from divprune.export.selection.downsample import interpolate_positions, resize
from divprune.export.selection.ranking import highest_first
from divprune.runtime.errors import OptionError, UnsupportedError

RNG = np.random.default_rng(11)
FEATURES = RNG.standard_normal((40, 10)).astype(np.float32)
ATTENTION = RNG.dirichlet(np.ones(40)).astype(np.float32)
KEYS = RNG.standard_normal((40, 6)).astype(np.float32)
PATCHES = RNG.standard_normal((40, 5)).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def by_attention(count: int) -> list[int]:
    return sorted(range(40), key=lambda i: (-ATTENTION[i], i))[:count]


def test_scope_takes_the_largest_added_coverage_times_importance() -> None:
    order: list[int] = []
    for _ in range(12):
        scores = {}
        for j in set(range(40)) - set(order):
            gain = 0.0
            for i in range(40):
                cover = max([0.0, *(cosine(FEATURES[i], FEATURES[s]) for s in order)])
                gain += max(0.0, cosine(FEATURES[i], FEATURES[j]) - cover)
            scores[j] = gain * float(ATTENTION[j])
        order.append(max(scores, key=lambda j: (scores[j], -j)))
    chosen = get_selector("scope").select(FEATURES, 12, {"cls_attention": ATTENTION})
    assert chosen.tolist() == order


def test_scope_regrets_a_wrong_choice() -> None:
    scope, signals = get_selector("scope"), {"cls_attention": ATTENTION}
    order = scope.select(FEATURES, 5, signals)
    assert scope.regret(FEATURES, order, signals) == 0
    assert scope.regret(FEATURES, order[::-1], signals) > 1e-3
    assert scope.regret(FEATURES, np.array([1, 1]), signals) > 1e6


@pytest.mark.parametrize("num_kept", [1, 2, 9, 40])
def test_prumerge_adds_neighbours_to_the_kept_and_sums_up_the_rest(num_kept: int) -> None:
    signals = {"reader_cls_attention": ATTENTION, "reader_keys": KEYS, "patch_features": PATCHES}
    prumerge = get_selector("prumerge")
    order = prumerge.select(FEATURES, num_kept, signals)
    assert order.tolist() == by_attention(num_kept)
    *kept, extra = order.tolist()
    rows = {}
    for i in kept:
        others = [j for j in range(40) if j != i]
        near = sorted(others, key=lambda j: (-cosine(KEYS[i], KEYS[j]), j))[:32]
        rows[i] = PATCHES[i] + sum(ATTENTION[j] * PATCHES[j] for j in near)
    rows[extra] = sum(ATTENTION[j] * PATCHES[j] for j in range(40) if j not in kept)
    expected = np.array([rows[i] for i in sorted(rows)])
    np.testing.assert_allclose(prumerge.mix(order, signals), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_kept", [1, 7, 20, 40])
def test_visionzip_merges_what_is_left_into_evenly_spaced_targets(num_kept: int) -> None:
    signals = {"cls_attention": ATTENTION, "keys": KEYS, "patch_features": PATCHES}
    visionzip = get_selector("visionzip")
    order = visionzip.select(FEATURES, num_kept, signals)
    targets_wanted = num_kept * 10 // 64
    dominant = by_attention(num_kept - targets_wanted)
    left = [i for i in range(40) if i not in dominant]
    targets = left[:: len(left) // targets_wanted][:targets_wanted] if targets_wanted else []
    assert order.tolist() == dominant + targets
    rows = {i: PATCHES[i] for i in dominant}
    joined: dict[int, list[int]] = {t: [] for t in targets}
    if targets:
        for j in set(left) - set(targets):
            joined[max(targets, key=lambda t: cosine(KEYS[t], KEYS[j]))].append(j)
    for t, members in joined.items():
        rows[t] = PATCHES[t] + (PATCHES[members].mean(axis=0) if members else 0)
    expected = np.array([rows[i] for i in sorted(rows)])
    np.testing.assert_allclose(visionzip.mix(order, signals), expected, rtol=1e-4, atol=1e-5)


def test_visionzip_refuses_targets_that_do_not_follow_from_the_dominant() -> None:
    visionzip, signals = get_selector("visionzip"), {"cls_attention": ATTENTION}
    order = visionzip.select(FEATURES, 20, signals)
    wrong = order.copy()
    wrong[-1] = next(i for i in range(40) if i not in order)
    assert visionzip.regret(FEATURES, order, signals) == 0
    assert visionzip.regret(FEATURES, wrong, signals) == np.inf


def test_equal_values_rank_from_the_lowest_index_up() -> None:
    values = np.array([0.0, 2.0, -0.0, 2.0, 1.0], np.float32)
    assert highest_first(values, 5).tolist() == [1, 3, 4, 0, 2]


def test_random_is_fixed_by_its_seed_alone() -> None:
    first, again, other = (get_selector("random", Setting(seed=s)) for s in (3, 3, 4))
    order = first.select(FEATURES, 10)
    assert order.tolist() == again.select(FEATURES[::-1], 10).tolist()
    assert order.tolist() != other.select(FEATURES, 10).tolist()
    assert first.parameters == {"seed": 3}


@pytest.mark.parametrize(
    ("grid", "num_tokens", "num_kept", "expected"),
    [
        ((4, 4), 16, 4, [5, 7, 13, 15]),
        ((4, 4), 16, 1, [10]),
        ((4, 4), 17, 4, [6, 8, 14, 16]),
        ((2, 8), 16, 4, [9, 11, 13, 15]),
        ((3, 3), 9, 9, list(range(9))),
        ((3, 3), 10, 10, list(range(10))),
    ],
)
def test_uniform_takes_the_middles_of_equal_parts(
    grid: tuple[int, int], num_tokens: int, num_kept: int, expected: list[int]
) -> None:
    uniform = get_selector("uniform", Setting(grid=grid))
    chosen = uniform.select(np.ones((num_tokens, 2), np.float32), num_kept)
    assert chosen.tolist() == expected


@pytest.mark.parametrize("grid", [(24, 24), (7, 7), (5, 9), (9, 2)])
def test_uniform_leaves_no_row_or_column_of_an_even_grid_far_away(grid: tuple[int, int]) -> None:
    total = grid[0] * grid[1]
    uniform = get_selector("uniform", Setting(grid=grid))
    for num_kept in range(1, total + 1):
        chosen = uniform.select(np.ones((total, 1), np.float32), num_kept)
        assert len(set(chosen.tolist())) == num_kept
        assert 0 <= chosen.min() <= chosen.max() < total
        assert (np.diff(chosen) > 0).all()


def test_downsample_keeps_the_largest_square_that_fits() -> None:
    downsample = get_selector("downsample", Setting(grid=(24, 24), patch_size=14))
    assert [downsample.count(576, k) for k in (1, 3, 58, 576)] == [1, 1, 49, 576]
    assert downsample.pass_size(49) == (98, 98)
    order = downsample.select(np.ones((576, 1), np.float32), 4)
    assert order.tolist() == [6 * 24 + 6, 6 * 24 + 18, 18 * 24 + 6, 18 * 24 + 18]


def test_downsample_refuses_tokens_that_are_no_grid() -> None:
    with pytest.raises(UnsupportedError, match="token for every patch"):
        get_selector("downsample", Setting(grid=None, patch_size=8)).count(48, 9)


@pytest.mark.parametrize("size", [(9, 9), (12, 20), (31, 31)])
def test_pixels_shrink_as_pillow_shrinks_them(size: tuple[int, int]) -> None:
    plane = RNG.standard_normal((31, 40)).astype(np.float32)
    expected = Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC)
    found = resize(plane[None, None], size)[0, 0]
    np.testing.assert_allclose(found, np.asarray(expected), atol=2e-5)


@pytest.mark.parametrize("leading", [0, 1])
@pytest.mark.parametrize("size", [(3, 3), (7, 7), (5, 2)])
def test_position_embeddings_are_interpolated_as_transformers_does(
    leading: int, size: tuple[int, int]
) -> None:
    table = RNG.standard_normal((49 + leading, 6)).astype(np.float32)
    patches = torch.from_numpy(table[leading:].reshape(7, 7, 6)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(
        patches, size=size, mode="bicubic", align_corners=False
    )
    found = interpolate_positions(table, (7, 7), size)
    np.testing.assert_array_equal(found[:leading], table[:leading])
    rows = expected[0].permute(1, 2, 0).reshape(-1, 6).numpy()
    np.testing.assert_allclose(found[leading:], rows, atol=2e-5)


@pytest.mark.parametrize("name", ["scope", "prumerge", "visionzip", "random", "uniform"])
def test_count_outside_the_tokens_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="1 to 40"):
        get_selector(name).select(FEATURES, 41, {})
