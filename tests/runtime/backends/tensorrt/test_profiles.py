from __future__ import annotations

import pytest

from divprune.runtime.backends.tensorrt.profiles import (
    PictureProfile,
    Profile,
    choose_profile,
    llm_profiles,
    profile_shapes,
)
from divprune.runtime.directory.manifest import DimRange, GraphSpec, TensorSpec
from divprune.runtime.errors import UnsupportedError
from tests.runtime.example_manifest import example_manifest, with_changes


def profiles(part="llm", **changes):
    return llm_profiles(with_changes(example_manifest(), **changes), part)


def test_decode_pruned_and_baseline_cover_what_can_be_asked():
    # 4 of 10 tokens kept, 40 rows at most: pruning takes 6 rows off the longest prompt.
    assert profiles() == (
        Profile("decode", 1, 1, 1),
        Profile("pruned", 2, 34, 34),
        Profile("baseline", 2, 40, 40),
    )


def test_without_baseline_the_pruned_profile_goes_all_the_way():
    assert profiles(baseline=False) == (Profile("decode", 1, 1, 1), Profile("pruned", 2, 40, 40))


def test_in_front_of_a_selection_inside_the_llm_every_prompt_is_whole():
    expected = (Profile("decode", 1, 1, 1), Profile("prompt", 2, 40, 40))
    assert profiles("llm_front") == profiles("llm_front", baseline=False) == expected


def test_behind_a_selection_inside_the_llm_rows_are_missing_with_and_without_the_baseline():
    assert profiles("llm_back") == profiles()
    assert profiles("llm_back", baseline=False) == profiles()[:2]
    short = {"max_seq_len": 500, "max_prefill_len": 499, "selector__num_kept": 1}
    _, pruned, _ = profiles("llm_back", **short)
    assert (pruned.optimum, pruned.maximum) == (1 + 64, 490)


def test_nothing_pruned_needs_no_second_profile():
    assert [p.name for p in profiles(selector__num_kept=10, selector__keep=1.0)] == [
        "decode",
        "pruned",
    ]


def test_long_caches_are_tuned_for_a_prompt_of_some_sentences():
    _, pruned, baseline = profiles(max_seq_len=2048, max_prefill_len=2047)
    assert (pruned.optimum, pruned.maximum) == (4 + 64, 2041)
    assert (baseline.optimum, baseline.maximum) == (10 + 64, 2047)


@pytest.mark.parametrize(
    "rows, index",
    # tuned for 122 and 640 rows, between which 279 is the middle
    [(1, 0), (2, 1), (90, 1), (279, 1), (280, 2), (608, 2), (1529, 2), (1530, 2), (2047, 2)],
)
def test_the_profile_that_is_tuned_for_the_nearest_number_is_chosen(rows, index):
    llava = {"selector__num_image_tokens": 576, "selector__num_kept": 58}
    found = profiles(max_seq_len=2048, max_prefill_len=2047, **llava)
    assert choose_profile(found, rows) == index


def test_rows_that_only_one_profile_takes_leave_no_choice():
    assert choose_profile(profiles(), 35) == 2


def test_more_rows_than_any_profile_takes_are_an_error():
    with pytest.raises(ValueError, match="no profile takes 41 rows"):
        choose_profile(profiles(), 41)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_profile_out_of_order_is_refused(numbers):
    with pytest.raises(ValueError, match="not a profile"):
        Profile("p", *numbers)


def test_pictures_of_any_size_are_tuned_for_a_typical_one_pruned_and_the_largest_whole():
    dims = {"tokens": DimRange(50, 100, 200), "kept": DimRange(5, 10, 20)}
    largest = {"selector__num_image_tokens": 200, "selector__num_kept": 20}
    _, pruned, baseline = profiles(max_seq_len=2048, max_prefill_len=2047, dims=dims, **largest)
    assert (pruned.optimum, pruned.maximum) == (10 + 64, 2047 - 180)
    assert (baseline.optimum, baseline.maximum) == (200 + 64, 2047)


def test_around_a_selection_inside_the_llm_prompts_are_tuned_for_a_typical_picture():
    dims = {"tokens": DimRange(50, 100, 200), "kept": DimRange(5, 10, 20)}
    largest = {"selector__num_image_tokens": 200, "selector__num_kept": 20}
    long = {"max_seq_len": 2048, "max_prefill_len": 2047, "dims": dims, **largest}
    _, prompt = profiles("llm_front", **long)
    assert (prompt.optimum, prompt.maximum) == (100 + 64, 2047)
    # A small picture loses next to nothing: without the baseline one profile takes all lengths.
    assert profiles("llm_back", **long) == profiles(**long)
    _, pruned = profiles("llm_back", baseline=False, **long)
    assert (pruned.optimum, pruned.maximum) == (10 + 64, 2047)


def test_every_input_of_a_vision_graph_has_its_range():
    profile = PictureProfile({"crops": DimRange(3, 4, 5), "kept": DimRange(1, 2, 9)})
    inputs = (
        TensorSpec("pixel_values", "float32", ("crops", 3, 16, 16)),
        TensorSpec("kept_slots", "int32", ("kept",)),
        TensorSpec("scale", "float32", (1,)),
    )
    graph = GraphSpec("vision/model.onnx", 20, inputs, inputs)
    assert profile_shapes(graph, profile) == {
        "pixel_values": ((3, 3, 16, 16), (4, 3, 16, 16), (5, 3, 16, 16)),
        "kept_slots": ((1,), (2,), (9,)),
    }


def test_three_positions_a_token_and_planes_vary_with_the_rows():
    inputs = (
        TensorSpec("inputs_embeds", "float16", (1, "sequence", 8)),
        TensorSpec("position_ids", "int64", (3, 1, "sequence")),
        TensorSpec("deepstack_0", "float16", (1, "sequence", 8)),
    )
    graph = GraphSpec("llm/model.onnx", 24, inputs, inputs)
    assert profile_shapes(graph, Profile("pruned", 2, 5, 7)) == {
        "inputs_embeds": ((1, 2, 8), (1, 5, 8), (1, 7, 8)),
        "position_ids": ((3, 1, 2), (3, 1, 5), (3, 1, 7)),
        "deepstack_0": ((1, 2, 8), (1, 5, 8), (1, 7, 8)),
    }


def test_a_dimension_that_the_profile_does_not_know_is_refused():
    inputs = (TensorSpec("pixel_values", "float32", ("tiles", 3, 16, 16)),)
    graph = GraphSpec("vision/model.onnx", 20, inputs, inputs)
    with pytest.raises(UnsupportedError, match="pixel_values varies") as caught:
        profile_shapes(graph, PictureProfile({"crops": DimRange(3, 4, 5)}))
    assert caught.value.found == "tiles, 3, 16, 16"
