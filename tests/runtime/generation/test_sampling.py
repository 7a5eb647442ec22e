"""Greedy choice, temperature and top-p."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divprune.runtime.errors import NumericalError, OptionError
from divprune.runtime.generation.sampling import Sampler, SamplingOptions, _nucleus, _softmax

PROBABILITIES = np.array([0.1, 0.5, 0.15, 0.25], np.float32)
FOUR = np.log(PROBABILITIES)


def frequencies(logits, draws=20_000, **options):
    sampler = Sampler(SamplingOptions(seed=7, **options))
    drawn = [sampler(logits) for _ in range(draws)]
    return np.bincount(drawn, minlength=len(logits)) / draws


# --- greedy


def test_greedy_takes_the_largest():
    assert Sampler(SamplingOptions())(np.array([0.0, 3.0, -1.0], np.float32)) == 1


def test_greedy_takes_the_lowest_index_of_equal_ones():
    assert Sampler(SamplingOptions())(np.array([1.0, 2.0, 2.0, 2.0], np.float32)) == 1


def test_result_is_a_python_int():
    for temperature in (0.0, 1.0):
        assert type(Sampler(SamplingOptions(temperature, seed=0))(FOUR)) is int


# --- options


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf"), -float("inf")])
def test_temperature_outside_its_range_is_an_option_error(temperature):
    with pytest.raises(OptionError, match="temperature"):
        SamplingOptions(temperature=temperature)


@pytest.mark.parametrize("top_p", [0.0, -0.5, 1.0001, float("nan"), 90])
def test_top_p_outside_its_range_is_an_option_error(top_p):
    with pytest.raises(OptionError, match="top-p"):
        SamplingOptions(top_p=top_p)


def test_negative_seed_is_an_option_error():
    with pytest.raises(OptionError, match="seed"):
        SamplingOptions(seed=-1)


# --- logits that are not finite


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_overflowed_logits_name_the_remedy(bad, temperature):
    logits = np.array([1.0, bad, 2.0], np.float32)
    with pytest.raises(NumericalError, match="--dtype fp32"):
        Sampler(SamplingOptions(temperature))(logits)


def test_all_tokens_barred_is_an_error():
    with pytest.raises(NumericalError):
        Sampler(SamplingOptions())(np.full(3, -np.inf, np.float32))


def test_barred_token_is_never_drawn():
    shares = frequencies(np.array([-np.inf, 0.0, 0.0], np.float32), 2000, temperature=1.0)
    assert shares[0] == 0


# --- the kept set


@settings(max_examples=200, deadline=None)
@given(
    # Hundredths apart: after a softmax, closer ones are equal and either may be kept.
    logits=st.lists(st.integers(-2000, 2000), min_size=1, max_size=40, unique=True).map(
        lambda hundredths: [n / 100 for n in hundredths]
    ),
    temperature=st.floats(0.1, 3.0),
    top_p=st.floats(0.01, 1.0),
)
def test_kept_set_and_probabilities_equal_transformers(logits, temperature, top_p):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.tensor([logits], dtype=torch.float32).double()
    scores = warpers.TemperatureLogitsWarper(temperature)(None, scores)
    unfiltered = scores.softmax(-1)[0].numpy()
    kept = warpers.TopPLogitsWarper(top_p)(None, scores)[0].isfinite().nonzero()[:, 0].numpy()

    ours = _softmax(np.array(logits, np.float32), temperature)
    np.testing.assert_allclose(ours, unfiltered, rtol=1e-12)
    chosen = _nucleus(ours, top_p)
    # A sum within rounding of 1 - top_p may fall on either side.
    disputed = np.setxor1d(chosen, kept)
    assert len(disputed) <= 1 or ours[disputed].max() < 1e-12
    if len(disputed):
        below = ours[ours <= ours[disputed].max()].sum()
        assert below == pytest.approx(1 - top_p, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.floats(0.0009765625, 1.0), min_size=1, max_size=30),
    top_p=st.floats(0.01, 0.999),
)
def test_kept_set_is_the_smallest_that_reaches_top_p(weights, top_p):
    probabilities = np.array(weights) / np.sum(weights)
    kept = _nucleus(probabilities, top_p)
    assert len(kept) >= 1
    assert (np.diff(kept) > 0).all()
    assert probabilities[kept].sum() >= top_p - 1e-9
    if len(kept) > 1:
        assert probabilities[kept].sum() - probabilities[kept].min() < top_p + 1e-9
    others = np.delete(probabilities, kept)
    assert others.max(initial=0) <= probabilities[kept].min()


def test_lowest_indices_of_equal_tokens_are_kept():
    np.testing.assert_array_equal(_nucleus(np.full(10, 0.1), 0.25), [0, 1, 2])


def test_tiny_top_p_is_greedy():
    assert frequencies(FOUR, 200, temperature=5.0, top_p=1e-9)[1] == 1


# --- the draw


def test_draws_follow_the_softmax():
    np.testing.assert_allclose(frequencies(FOUR, temperature=1.0), PROBABILITIES, atol=0.012)


def test_draws_follow_the_temperature():
    expected = PROBABILITIES**0.5
    np.testing.assert_allclose(
        frequencies(FOUR, temperature=2.0), expected / expected.sum(), atol=0.012
    )


def test_draws_within_top_p_are_renormalised():
    shares = frequencies(FOUR, temperature=1.0, top_p=0.7)
    np.testing.assert_allclose(shares, [0, 2 / 3, 0, 1 / 3], atol=0.012)


def test_same_seed_repeats_and_another_differs():
    draws = [
        [sampler(FOUR) for _ in range(50)]
        for sampler in (Sampler(SamplingOptions(1.0, seed=seed)) for seed in (3, 3, 4))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_without_a_seed_two_samplers_differ():
    first, second = (Sampler(SamplingOptions(1.0)) for _ in range(2))
    assert [first(FOUR) for _ in range(100)] != [second(FOUR) for _ in range(100)]


@pytest.mark.filterwarnings("error")
def test_extreme_temperatures_do_not_overflow():
    logits = np.array([-60_000.0, 60_000.0, 0.0], np.float32)
    assert frequencies(logits, 50, temperature=1e-300)[1] == 1
    assert frequencies(logits, 50, temperature=1e300).max() < 1


# --- top-k and min-p


@pytest.mark.parametrize(
    "options", [{"top_k": -1}, {"min_p": -0.1}, {"min_p": 1.5}, {"min_p": float("nan")}]
)
def test_limits_outside_their_range_are_option_errors(options):
    with pytest.raises(OptionError, match=next(iter(options)).replace("_", "-")):
        SamplingOptions(**options)


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan"), float("inf")])
def test_repetition_penalty_outside_its_range_is_an_option_error(penalty):
    with pytest.raises(OptionError, match="repetition penalty"):
        SamplingOptions(repetition_penalty=penalty)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-500, 500), min_size=1, max_size=30, unique=True),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 40),
    top_p=st.sampled_from([1.0, 0.9, 0.5]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
)
def test_tokens_that_can_be_drawn_are_those_of_transformers(
    logits, temperature, top_k, top_p, min_p
):
    torch = pytest.importorskip("torch")
    generation = pytest.importorskip("transformers.generation")
    scores = np.array(logits, np.float32) / 100
    warpers = [generation.TemperatureLogitsWarper(temperature)]
    warpers += [generation.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [generation.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [generation.MinPLogitsWarper(min_p)] if min_p else []
    expected = torch.from_numpy(scores)[None]
    for warper in warpers:
        expected = warper(None, expected)
    options = SamplingOptions(temperature, top_p, seed=1, top_k=top_k, min_p=min_p)
    sampler = Sampler(options)
    drawn = {sampler(scores) for _ in range(300)}
    allowed = set(np.flatnonzero(np.isfinite(expected[0].numpy())).tolist())
    assert drawn <= allowed
    likely = torch.softmax(expected[0], 0).numpy() > 0.05
    assert set(np.flatnonzero(likely).tolist()) <= drawn
