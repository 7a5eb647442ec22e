from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from divprune.runtime.backends.image_features import ImageFeatures
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.directory.manifest import DimRange, Manifest
from divprune.runtime.errors import NumericalError, OptionError, UnsupportedError
from divprune.runtime.generation.kept_tokens import KeepRule, resolve_keep, take_kept
from tests.runtime.example_manifest import example_manifest, with_changes, with_cover

ORDER = np.array([7, 2, 9, 0])


@pytest.fixture
def features() -> ImageFeatures:
    rows = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)
    return ImageFeatures(rows, ORDER, rows[np.sort(ORDER)])


@pytest.fixture
def manifest() -> Manifest:
    return example_manifest()


def test_the_exported_count_takes_the_selected_rows_in_raster_order(features):
    kept = take_kept(features, 4)
    assert kept.indices.tolist() == [0, 2, 7, 9]
    assert kept.features is features.selected_features
    assert kept.num_image_tokens == 10


def test_a_smaller_count_takes_a_prefix_of_the_selection(features):
    kept = take_kept(features, 2)
    assert kept.indices.tolist() == [2, 7]
    np.testing.assert_array_equal(kept.features, features.image_features[[2, 7]])


def test_the_baseline_takes_all_rows(features):
    kept = take_kept(features, 10)
    assert kept.indices.tolist() == list(range(10))
    assert kept.features is features.image_features


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("count", [2, 4, 10])
def test_features_that_are_not_finite_are_refused_even_where_they_are_not_kept(
    features, value, count
):
    features.image_features[5, 3] = value
    with pytest.raises(NumericalError, match=r"(?s)NaN/Inf.*1 of 10 tokens.*--dtype fp32"):
        take_kept(features, count)


def test_without_keep_the_exported_count_is_taken(manifest):
    assert resolve_keep(manifest, None) == 4


@pytest.mark.parametrize("keep, count", [(0.4, 4), (0.2, 2), (0.01, 1), (1.0, 10), (0.96, 10)])
def test_keep_becomes_a_count(manifest, keep, count):
    assert resolve_keep(manifest, keep) == count


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, 10, float("nan"), float("inf")])
def test_keep_that_is_no_fraction_is_refused(manifest, keep):
    with pytest.raises(OptionError, match="--keep"):
        resolve_keep(manifest, keep)


def test_keep_above_the_exported_names_the_export_command(manifest):
    with pytest.raises(OptionError) as caught:
        resolve_keep(manifest, 0.5)
    assert caught.value.expected == "at most 0.4 (4 tokens)"
    assert caught.value.found == "0.5 (5 of 10 tokens)"
    assert caught.value.fix == export_command(manifest, keep=0.5)
    assert "--model some/model --selector divprune --keep 0.5" in caught.value.fix


def test_keep_1_without_the_baseline_names_the_option_that_left_it_out(manifest):
    with pytest.raises(OptionError, match="without the baseline") as caught:
        resolve_keep(with_changes(manifest, baseline=False), 1.0)
    assert caught.value.fix == export_command(manifest, baseline=True)
    assert "--no-baseline" not in caught.value.fix


def test_an_export_that_keeps_all_tokens_needs_no_baseline(manifest):
    full = with_changes(manifest, selector__keep=1.0, selector__num_kept=10, baseline=False)
    assert resolve_keep(full, 1.0) == 10


def test_a_smaller_keep_is_refused_where_the_order_is_not_nested(manifest):
    loose = with_changes(manifest, selector__nested=False, selector__name="other")
    with pytest.raises(OptionError, match=r"(?s)cannot keep fewer.*--selector other --keep 0.2"):
        resolve_keep(loose, 0.2)
    assert resolve_keep(loose, 0.4) == 4
    assert resolve_keep(loose, 1.0) == 10


@pytest.mark.parametrize(
    "least, count", [(0.1, 1), (0.3, 1), (0.31, 2), (0.8, 3), (0.95, 4), (1, 4)]
)
def test_as_many_are_kept_as_reach_the_cover_and_at_most_the_exported(manifest, least, count):
    rule = KeepRule.of(with_cover(manifest), AutoKeep(least))
    cover = np.array([0.3, 0.5, 0.8, 0.95], np.float32)
    assert rule.count(10, cover) == count


def test_a_graph_that_tells_no_cover_takes_no_automatic_keep(manifest):
    with pytest.raises(UnsupportedError, match="does not tell how well"):
        KeepRule.of(manifest, AutoKeep(0.8))


@pytest.mark.parametrize("num_tokens, count", [(10, 4), (5, 2), (3, 1), (1, 1)])
def test_where_pictures_vary_k_follows_from_the_picture(manifest, num_tokens, count):
    varying = with_changes(manifest, dims={"tokens": DimRange(1, 5, 10)})
    assert KeepRule.of(varying, None).count(num_tokens) == count


def test_planes_follow_the_kept_tokens_in_raster_order(features):
    plane = np.arange(10, dtype=np.float32)[:, None]
    kept = take_kept(replace(features, planes=(plane,)), 2)
    assert kept.planes[0][:, 0].tolist() == [2, 7]
