from __future__ import annotations

import logging

import pytest

from divprune.runtime.errors import OptionError, PromptError
from divprune.runtime.limits import answer_limit, validate_max_new_tokens
from divprune.runtime.manifest import Manifest
from tests.runtime.example_manifest import example_manifest, with_changes


@pytest.fixture
def manifest() -> Manifest:
    return with_changes(example_manifest(), max_prefill_len=40, max_seq_len=50)


def limit(manifest: Manifest, **changes: int) -> int:
    values = {"max_new_tokens": 8, "prompt_tokens": 30, "num_images": 2, "num_kept": 4}
    return answer_limit(manifest, **(values | changes))


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
        manifest, selector__positions="original", model__max_position_embeddings=45
    )
    assert limit(spread, max_new_tokens=99) == 45 - 30 - 12
    with pytest.raises(PromptError, match=r"(?s)no room.*at most 32 tokens"):
        limit(spread, prompt_tokens=33)
