from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.errors import OptionError, PromptError, UnsupportedError
from divprune.runtime.reports.bench.workload import (
    check_prompt_tokens,
    choose_keeps,
    common_limit,
    pad_prompt,
)
from tests.runtime.example_manifest import example_manifest, with_changes, with_cover


def test_the_exported_fraction_and_the_baseline_are_the_default():
    assert choose_keeps(example_manifest(), None) == ((0.4, 1.0), [])


def test_fractions_ascend_and_the_baseline_is_added_once():
    assert choose_keeps(example_manifest(), (1.0, 0.2, 0.4, 0.1)) == ((0.1, 0.2, 0.4, 1.0), [])


def test_fractions_of_the_same_number_of_tokens_are_measured_once():
    keeps, notes = choose_keeps(example_manifest(), (0.2, 0.21, 0.2))
    assert keeps == (0.2, 1.0)
    assert notes == ["keep 0.21 is the same 2 tokens as 0.2"]


def test_without_the_baseline_a_note_says_what_is_missing():
    keeps, (note,) = choose_keeps(with_changes(example_manifest(), baseline=False), None)
    assert keeps == (0.4,)
    assert "keep 1.0" in note


def test_an_export_that_keeps_everything_is_its_own_baseline():
    manifest = with_changes(example_manifest(), selector__keep=1.0, selector__num_kept=10)
    assert choose_keeps(with_changes(manifest, baseline=False), None) == ((1.0,), [])


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_fraction_above_the_exported_is_refused(keep):
    with pytest.raises(OptionError, match="larger than what this engine"):
        choose_keeps(example_manifest(), (keep,))


def test_the_limit_is_one_that_every_fraction_has_room_for():
    # 50 slots: 28 + 10 rows leave 12 with keep 1.0, more with less.
    assert common_limit(example_manifest(), (0.4, 1.0), 28, 8) == (8, [])
    limit, (note,) = common_limit(example_manifest(), (0.4, 1.0), 28, 16)
    assert limit == 12
    assert note == "12 new tokens instead of 16: the cache has no more room"


def test_a_prompt_that_does_not_fit_with_every_token_is_refused():
    with pytest.raises(PromptError, match="too long"):
        common_limit(example_manifest(), (0.4, 1.0), 35, 8)


def count_words(text: str) -> int:
    return 2 + len(text.split())


@given(st.integers(3, 300))
def test_a_prompt_is_padded_to_the_wanted_tokens(wanted):
    padded = pad_prompt("what", wanted, count_words)
    assert count_words(padded) == wanted
    assert padded.startswith("what")


@given(st.integers(3, 200), st.integers(2, 5))
def test_a_filler_word_of_several_tokens_ends_just_below(wanted, tokens):
    def count(text: str) -> int:
        return 3 + tokens * (len(text.split()) - 1)

    assert wanted - tokens < count(pad_prompt("what", wanted, count)) <= wanted


@pytest.mark.parametrize("wanted", [50, 51, 10**6, 10**9, 2**63])
def test_a_prompt_that_no_cache_holds_is_refused_before_it_is_made(wanted):
    manifest = example_manifest()
    assert manifest.max_prefill_len < 50
    with pytest.raises(OptionError, match="--prompt-tokens is more") as refused:
        check_prompt_tokens(manifest, wanted)
    (advised,) = re.findall(r"\d+", refused.value.fix)
    check_prompt_tokens(manifest, int(advised))
    check_prompt_tokens(manifest, None)


def test_a_prompt_that_is_longer_already_is_refused_with_its_length():
    with pytest.raises(OptionError, match="at least 3"):
        pad_prompt("what", 2, count_words)


def test_fractions_are_counted_in_the_tokens_of_the_picture():
    keeps, notes = choose_keeps(example_manifest(), (0.4, 0.38), num_image_tokens=5)
    assert keeps == (0.4, 1.0)
    assert notes == ["keep 0.38 is the same 2 tokens as 0.4"]


def test_a_similarity_comes_first_until_the_picture_is_known():
    manifest, auto = with_cover(example_manifest()), AutoKeep(0.8)
    assert choose_keeps(manifest, (0.4, auto)) == ((auto, 0.4, 1.0), [])
    cover = np.array([0.1, 0.2, 0.85, 0.9], np.float32)
    assert choose_keeps(manifest, (0.4, auto, 0.1), cover=cover) == ((0.1, auto, 0.4, 1.0), [])


def test_a_similarity_that_keeps_what_a_fraction_keeps_is_measured_once():
    manifest, auto = with_cover(example_manifest()), AutoKeep(0.99)
    cover = np.array([0.1, 0.2, 0.85, 0.9], np.float32)
    keeps, notes = choose_keeps(manifest, (0.4, auto), cover=cover)
    assert keeps == (0.4, 1.0)
    assert notes == ["keep auto:0.99 is the same 4 tokens as 0.4"]


def test_a_similarity_is_refused_where_the_graph_tells_no_cover():
    with pytest.raises(UnsupportedError, match="does not tell how well"):
        choose_keeps(example_manifest(), (AutoKeep(0.8),))
