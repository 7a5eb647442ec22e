from __future__ import annotations

import pytest

from divprune.plugins.node import MAX_TOKENS, Launch, check_shapes, plan_launch
from divprune.runtime.errors import OptionError, UnsupportedError


@pytest.mark.parametrize(
    ("num_tokens", "entry", "threads"),
    [
        (1, "greedy_max_min_1", 32),
        (32, "greedy_max_min_1", 32),
        (33, "greedy_max_min_1", 64),
        (576, "greedy_max_min_1", 576),
        (1024, "greedy_max_min_1", 1024),
        (1025, "greedy_max_min_2", 544),
        (2880, "greedy_max_min_3", 960),
        (MAX_TOKENS, "greedy_max_min_10", 1024),
    ],
)
def test_launch_has_a_place_for_every_token(num_tokens: int, entry: str, threads: int) -> None:
    assert plan_launch(num_tokens, 1) == Launch(entry, threads)


def test_every_launch_has_whole_warps_and_places_for_all_tokens() -> None:
    for num_tokens in range(1, MAX_TOKENS + 1):
        plan = plan_launch(num_tokens, num_tokens)
        tokens_a_thread = int(plan.entry.rpartition("_")[2])
        assert plan.threads % 32 == 0
        assert plan.threads <= 1024
        assert (plan.threads - 32) * tokens_a_thread < num_tokens
        assert num_tokens <= plan.threads * tokens_a_thread


@pytest.mark.parametrize("num_tokens", [0, -1, MAX_TOKENS + 1])
def test_too_many_tokens_lead_to_the_loop(num_tokens: int) -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)1 to 10240.*vision/model\.onnx"):
        plan_launch(num_tokens, 1)


@pytest.mark.parametrize("num_kept", [0, -1, 577])
def test_counts_that_cannot_be_kept_are_refused(num_kept: int) -> None:
    with pytest.raises(OptionError, match=r"(?s)1 to 576.*found"):
        plan_launch(576, num_kept)


def test_shapes_give_images_and_tokens() -> None:
    assert check_shapes((1, 576, 576), (1, 58)) == (1, 576, 58)
    assert check_shapes([4, 7, 7], [4, 7], 7) == (4, 7, 7)


@pytest.mark.parametrize(
    ("gram", "seed"),
    [
        ((576, 576), (1, 58)),
        ((1, 576, 575), (1, 58)),
        ((1, 576, 576), (2, 58)),
        ((1, 576, 576), ()),
        ((1, 576, 576), (1,)),
        ((1, 576, 576), (1, 0)),
        ((1, -1, -1), (1, 58)),
        ((1, 577, 577), (1, 58)),
        ((-1, 576, 576), (-1, 58)),
        ((), ()),
    ],
)
def test_shapes_that_do_not_fit_are_refused(gram: tuple[int, ...], seed: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match=r"gram \["):
        check_shapes(gram, seed, 576)


def test_more_kept_than_there_are_tokens_is_refused() -> None:
    with pytest.raises(OptionError, match="1 to 576"):
        check_shapes((1, 576, 576), (1, 577))
