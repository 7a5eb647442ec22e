"""DivPrune in NumPy and in ONNX against the brute-force evaluation of its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from divprune.export.selection.divprune import DivPrune, greedy_max_min, similarity
from divprune.runtime.errors import NumericalError, OptionError
from tests.export.selection.brute_force import choose, cosines, largest_regret
from tests.export.selection.graphs import (
    Floats,
    Order,
    graph_greedy,
    graph_select,
    greedy_model,
)

SAFE_MARGIN = 1e-5  # two float32 similarity matrices of the same features are closer than this
EXAMPLES = settings(max_examples=60, deadline=None)
AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, -1e-45, 1e-12, 1e-6, 1e6]


def select(features: npt.NDArray[Any], num_kept: int) -> Order:
    return DivPrune().select(features, num_kept)


BOTH = pytest.mark.parametrize("chosen_by", [select, graph_select], ids=["numpy", "graph"])


@st.composite
def feature_rows(draw: st.DrawFn) -> Floats:
    """Features [N, D]: coarse values that tie, awkward values, or a cloud; some rows repeat."""
    shape = draw(st.tuples(st.integers(1, 16), st.integers(1, 6)))
    elements = draw(
        st.sampled_from(
            [
                st.integers(-2, 2).map(float),
                st.sampled_from(AWKWARD),
                st.floats(-100, 100, width=32),
            ]
        )
    )
    rows = draw(hnp.arrays(np.float32, shape, elements=elements))
    picks = draw(hnp.arrays(np.int64, shape[0], elements=st.integers(0, shape[0] - 1)))
    return np.ascontiguousarray(rows[picks]) if draw(st.booleans()) else rows


@st.composite
def clouds(draw: st.DrawFn) -> Floats:
    """Random distinct rows [N, D]; only a seed pair that is mutually nearest ties."""
    num_tokens = draw(st.integers(2, 24))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return rng.standard_normal((num_tokens, 8)).astype(np.float32)


@st.composite
def grams(draw: st.DrawFn) -> Floats:
    """Any finite matrix [N, N]: no property of similarities is needed to agree on ties."""
    num_tokens = draw(st.integers(1, 12))
    elements = draw(st.sampled_from([st.sampled_from(AWKWARD), st.floats(-1, 1, width=32)]))
    return draw(hnp.arrays(np.float32, (num_tokens, num_tokens), elements=elements))


def counts(num_tokens: int) -> st.SearchStrategy[int]:
    return st.integers(1, num_tokens)


def assert_agrees_with_definition(features: Floats, order: Order) -> None:
    """The brute-force order where margins allow; elsewhere no decision worse than rounding."""
    gram = cosines(features)
    expected = choose(gram, len(order))
    if expected.margin > SAFE_MARGIN:
        assert order.tolist() == expected.order
    assert largest_regret(gram, order.tolist()) <= SAFE_MARGIN


@EXAMPLES
@given(gram=grams(), data=st.data())
def test_same_similarities_give_same_indices_everywhere(gram: Floats, data: st.DataObject) -> None:
    num_kept = data.draw(counts(len(gram)))
    expected = choose(gram, num_kept).order
    assert greedy_max_min(gram, num_kept).tolist() == expected
    assert graph_greedy(gram, num_kept).tolist() == expected


@BOTH
@EXAMPLES
@given(features=feature_rows(), data=st.data())
def test_features_give_the_indices_of_the_definition(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    num_kept = data.draw(counts(len(features)))
    order = chosen_by(features, num_kept)
    assert order.dtype == np.int64
    assert len(order) == num_kept
    assert_agrees_with_definition(features, order)


@BOTH
@EXAMPLES
@given(features=clouds(), data=st.data())
def test_distinct_rows_give_the_indices_of_the_definition(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    num_kept = data.draw(counts(len(features)))
    assert_agrees_with_definition(features, chosen_by(features, num_kept))


@BOTH
@EXAMPLES
@given(features=feature_rows(), data=st.data())
def test_exactly_k_different_tokens_in_range(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    num_kept = data.draw(counts(len(features)))
    order = chosen_by(features, num_kept)
    assert len(np.unique(order)) == num_kept
    assert 0 <= order.min() <= order.max() < len(features)


@BOTH
@EXAMPLES
@given(features=feature_rows(), data=st.data())
def test_smaller_count_is_a_prefix_of_the_larger(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    larger = data.draw(counts(len(features)))
    smaller = data.draw(counts(larger))
    assert chosen_by(features, smaller).tolist() == chosen_by(features, larger)[:smaller].tolist()


@BOTH
@EXAMPLES
@given(features=feature_rows(), data=st.data())
def test_rows_scaled_by_powers_of_two_give_identical_indices(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    assume(all(norm == 0 or norm > 1e-3 for norm in np.abs(features).max(axis=1)))
    features[np.abs(features) < 1e-6] = 0  # squares of these would lose bits below float32
    exponents = data.draw(hnp.arrays(np.int64, (len(features), 1), elements=st.integers(-6, 6)))
    num_kept = data.draw(counts(len(features)))
    scaled = np.ldexp(features, exponents).astype(np.float32)
    assert chosen_by(scaled, num_kept).tolist() == chosen_by(features, num_kept).tolist()


@BOTH
@EXAMPLES
@given(features=clouds(), data=st.data())
def test_rows_scaled_by_any_factor_give_same_indices_where_margins_allow(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    shape = (len(features), 1)
    factors = data.draw(hnp.arrays(np.float32, shape, elements=st.floats(0.125, 1000, width=32)))
    num_kept = data.draw(counts(len(features)))
    assume(choose(cosines(features), num_kept).margin > SAFE_MARGIN)
    scaled = features * factors
    assert chosen_by(scaled, num_kept).tolist() == chosen_by(features, num_kept).tolist()


@BOTH
@EXAMPLES
@given(features=clouds(), data=st.data())
def test_permuted_distinct_rows_give_the_same_tokens_in_the_same_order(
    chosen_by: Any, features: Floats, data: st.DataObject
) -> None:
    permutation = np.array(data.draw(st.permutations(range(len(features)))))
    num_kept = data.draw(counts(len(features)))
    assume(choose(cosines(features), num_kept).margin > SAFE_MARGIN)
    permuted = chosen_by(features[permutation], num_kept)
    assert permutation[permuted].tolist() == chosen_by(features, num_kept).tolist()


@BOTH
def test_all_equal_rows_are_taken_from_the_lowest_index_up(chosen_by: Any) -> None:
    features = np.full((6, 4), 0.5, np.float32)
    assert chosen_by(features, 6).tolist() == [0, 1, 2, 3, 4, 5]


@BOTH
def test_zero_rows_are_taken_from_the_lowest_index_up(chosen_by: Any) -> None:
    assert chosen_by(np.zeros((5, 3), np.float32), 5).tolist() == [0, 1, 2, 3, 4]


@BOTH
def test_duplicate_comes_last_among_orthogonal_rows(chosen_by: Any) -> None:
    rows = np.eye(4, dtype=np.float32)[[0, 0, 1, 2, 3]]
    assert chosen_by(rows, 5).tolist() == [2, 0, 3, 4, 1]


@BOTH
def test_negative_zero_row_is_a_zero_row(chosen_by: Any) -> None:
    rows = np.array([[1, 0], [-0.0, -0.0], [0, 0], [1, 0]], np.float32)
    assert chosen_by(rows, 4).tolist() == [1, 0, 2, 3]


@BOTH
def test_denormal_row_below_the_norm_clamp_stays_nearly_zero(chosen_by: Any) -> None:
    rows = np.array([[1, 0], [0, 0], [1e-40, 0], [0, 0], [1, 0]], np.float32)
    assert chosen_by(rows, 5).tolist() == [1, 0, 3, 2, 4]


@BOTH
@pytest.mark.parametrize("num_kept", [1, 2])
def test_two_tokens_start_with_the_lower_index(chosen_by: Any, num_kept: int) -> None:
    rows = np.array([[1, 0], [0, 1]], np.float32)
    assert chosen_by(rows, num_kept).tolist() == [0, 1][:num_kept]


@BOTH
def test_single_token_is_kept(chosen_by: Any) -> None:
    assert chosen_by(np.ones((1, 3), np.float32), 1).tolist() == [0]


@BOTH
def test_keeping_everything_returns_every_token_once(chosen_by: Any) -> None:
    features = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    assert sorted(chosen_by(features, 100).tolist()) == list(range(100))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_reference_names_the_row_that_is_not_finite(bad: float) -> None:
    features = np.ones((4, 3), np.float32)
    features[2, 1] = bad
    with pytest.raises(NumericalError, match=r"1 bad rows?, the first is row 2"):
        select(features, 2)


def test_reference_refuses_norm_that_overflows_float32() -> None:
    with pytest.raises(NumericalError, match="norm beyond float32"):
        select(np.full((2, 2), 1e30), 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_reference_refuses_similarities_that_are_not_finite(bad: float) -> None:
    gram = np.zeros((3, 3), np.float32)
    gram[0, 1] = bad
    with pytest.raises(NumericalError, match="similarities"):
        greedy_max_min(gram, 2)


@pytest.mark.parametrize("num_kept", [0, -1, 6])
def test_count_outside_the_tokens_is_refused(num_kept: int) -> None:
    with pytest.raises(OptionError, match="1 to 5"):
        select(np.ones((5, 2), np.float32), num_kept)
    with pytest.raises(OptionError, match="1 to 5"):
        greedy_model(5, num_kept)


def test_llava_sized_features_give_the_indices_of_the_definition() -> None:
    features = np.random.default_rng(2).standard_normal((576, 256)).astype(np.float32)
    assert_agrees_with_definition(features, select(features, 58))
    assert_agrees_with_definition(features, graph_select(features, 58))
    gram = similarity(features)
    assert graph_greedy(gram, 58).tolist() == greedy_max_min(gram, 58).tolist()


def test_ten_thousand_tokens_give_the_same_indices_everywhere() -> None:
    rows = np.random.default_rng(3).standard_normal((10_000, 8)).astype(np.float32)
    gram = similarity(rows)
    expected = choose(gram, 6).order
    order = greedy_max_min(gram, 300)
    assert order[:6].tolist() == expected
    assert graph_greedy(gram, 300).tolist() == order.tolist()


def test_regret_is_zero_for_the_reference_and_agrees_with_brute_force_elsewhere() -> None:
    rows = np.random.default_rng(3).standard_normal((12, 5)).astype(np.float32)
    gram = similarity(rows)
    assert DivPrune().regret(rows, greedy_max_min(gram, 6)) == 0.0
    wrong = np.array([4, 0, 7, 2, 9, 1])
    assert DivPrune().regret(rows, wrong) == pytest.approx(largest_regret(gram, wrong.tolist()))


def test_regret_of_a_token_chosen_twice_is_beyond_every_similarity() -> None:
    rows = np.random.default_rng(3).standard_normal((12, 5)).astype(np.float32)
    assert DivPrune().regret(rows, np.array([1, 2, 1])) > 2
