from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from divprune.runtime.directory.limits import answer_limit, shorten_cache, validate_max_new_tokens
from divprune.runtime.directory.manifest import (
    CACHE_LENGTH,
    DimRange,
    GraphSpec,
    Manifest,
    TensorSpec,
)
from divprune.runtime.errors import OptionError, PromptError, UnsupportedError
from tests.runtime.example_manifest import example_manifest, with_changes


@pytest.fixture
def manifest() -> Manifest:
    return with_changes(example_manifest(), max_prefill_len=40, max_seq_len=50)


def with_cache(manifest: Manifest, length: int | str) -> Manifest:
    past = TensorSpec("past_key_0", "float32", (1, 1, length, 4))
    graph = GraphSpec("vision/model.onnx", 20, (past,), (past,))
    return with_changes(manifest, graphs={**manifest.graphs, "llm": graph})


def limit(manifest: Manifest, **changes: int) -> int:
    values = {"max_new_tokens": 8, "prompt_tokens": 30, "num_visual": 8, **changes}
    values.setdefault("next_position", values["prompt_tokens"])
    return answer_limit(manifest, **values)


def test_a_shorter_cache_lowers_both_limits_and_its_bytes(manifest):
    short = shorten_cache(with_cache(manifest, CACHE_LENGTH), 30)
    assert (short.max_seq_len, short.max_prefill_len) == (30, 29)
    assert short.kv_cache_bytes == manifest.kv_cache_bytes * 30 // 50
    assert short.decoder_graph("llm").inputs[0].shape == (1, 1, 30, 4)
    assert shorten_cache(with_cache(manifest, CACHE_LENGTH), 45).max_prefill_len == 40


@pytest.mark.parametrize("max_seq_len", [None, 50])
def test_the_exported_length_is_no_change_whatever_the_graph(manifest, max_seq_len):
    fixed = with_cache(manifest, 50)
    assert shorten_cache(fixed, max_seq_len) is fixed


@pytest.mark.parametrize(
    "max_seq_len, message",
    [
        (51, r"larger than what(.|\n)*at most 50(.|\n)*51(.|\n)*export again"),
        (2, r"no room(.|\n)*3 to 50"),
        (-1, "no room"),
    ],
)
def test_a_length_that_was_not_exported_is_refused(manifest, max_seq_len, message):
    with pytest.raises(OptionError, match=message):
        shorten_cache(with_cache(manifest, CACHE_LENGTH), max_seq_len)


def test_inside_the_llm_every_token_of_the_picture_needs_a_slot(manifest):
    graphs = dict.fromkeys(
        ("llm_front", "llm_back"), with_cache(manifest, CACHE_LENGTH).graphs["llm"]
    )
    inside = replace(
        manifest,
        baseline=False,
        graphs=manifest.graphs | graphs,
        selector=replace(manifest.selector, inside_llm=True, parameters={"layer": 1}),
    )
    with pytest.raises(OptionError, match="12 to 50"):
        shorten_cache(inside, 11)
    short = shorten_cache(inside, 20)
    shapes = [short.decoder_graph(name).inputs[0].shape for name in short.llm_graphs]
    assert [shape[2] for shape in shapes] == [20, 14]  # 10 - 4 tokens never come behind
    assert sum(4 * 2 * 4 * shape[2] for shape in shapes) == short.kv_cache_bytes


def test_where_pictures_vary_the_smallest_one_has_to_fit_and_the_back_is_as_long(manifest):
    graphs = dict.fromkeys(
        ("llm_front", "llm_back"), with_cache(manifest, CACHE_LENGTH).graphs["llm"]
    )
    inside = replace(
        manifest,
        baseline=False,
        graphs=manifest.graphs | graphs,
        dims={"tokens": DimRange(4, 6, 10)},
        selector=replace(manifest.selector, inside_llm=True, parameters={"layer": 1}),
    )
    with pytest.raises(OptionError, match="6 to 50"):
        shorten_cache(inside, 5)
    short = shorten_cache(inside, 20)
    shapes = [short.decoder_graph(name).inputs[0].shape for name in short.llm_graphs]
    assert [shape[2] for shape in shapes] == [20, 20]
    assert short.kv_cache_bytes == manifest.kv_cache_bytes * 20 // 50


def test_a_cache_of_fixed_length_is_not_shortened(manifest):
    with pytest.raises(UnsupportedError, match=r"fixed length(.|\n)*--max-seq-len 50, or none"):
        shorten_cache(with_cache(manifest, 50), 30)


def test_a_prompt_too_long_for_a_cache_that_may_be_longer_says_so(manifest):
    short = shorten_cache(with_cache(manifest, CACHE_LENGTH), 30)
    with pytest.raises(PromptError) as caught:
        limit(short, prompt_tokens=30)
    assert caught.value.expected == "at most 29 tokens"
    assert "a larger --max-seq-len (beyond what was exported" in str(caught.value.fix)


@pytest.mark.parametrize("max_new_tokens", [0, -3])
def test_no_new_token_is_refused(max_new_tokens):
    with pytest.raises(OptionError, match="at least 1"):
        validate_max_new_tokens(max_new_tokens)


def test_where_there_is_room_the_limit_is_what_was_asked_for(manifest, caplog):
    assert limit(manifest) == 8
    assert limit(manifest, max_new_tokens=20) == 20
    assert not caplog.records


def test_the_answer_ends_where_the_room_ends_and_says_so_before(manifest, caplog):
    with caplog.at_level(logging.WARNING):
        assert limit(manifest, max_new_tokens=21) == 20
    assert "20 of 21 tokens" in caplog.text


def test_a_prompt_longer_than_prefill_takes_is_refused_with_the_numbers(manifest):
    assert limit(manifest, prompt_tokens=40) == 8
    with pytest.raises(PromptError) as caught:
        limit(manifest, prompt_tokens=41)
    assert caught.value.expected == "at most 40 tokens"
    assert caught.value.found == "41 tokens, 8 of them image tokens"
    for way_out in ("smaller --keep", "shorter prompt", "larger --max-seq-len"):
        assert way_out in str(caught.value.fix)


def test_a_prompt_that_leaves_no_room_is_refused(manifest):
    full = with_changes(manifest, max_prefill_len=50)
    assert limit(full, prompt_tokens=49) == 1
    with pytest.raises(PromptError, match=r"(?s)no room.*at most 49 tokens"):
        limit(full, prompt_tokens=50)


def test_original_positions_end_where_the_model_has_no_more(manifest):
    # 2 pictures x 6 removed tokens still take their positions
    spread = with_changes(
        manifest, selector__positions="original", max_seq_len=45, model__max_position_embeddings=45
    )
    assert limit(spread, max_new_tokens=99, next_position=42) == 45 - 30 - 12
    with pytest.raises(PromptError, match=r"(?s)no room.*at most 32 tokens"):
        limit(spread, prompt_tokens=33, next_position=45)
