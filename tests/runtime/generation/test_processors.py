"""The rules of generation_config.json, value for value as transformers applies them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divprune.runtime.errors import EngineDirectoryError, NumericalError
from divprune.runtime.generation.generation_config import describe_left_out, load_token_rules
from divprune.runtime.generation.processors import LogitsProcessor
from divprune.runtime.generation.sampling import Sampler, SamplingOptions

VOCABULARY, LIMIT = 12, 8
RULES = {
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[3], [4, 5], [0]],
    "sequence_bias": [[[6], 2.5], [[7, 8], -1.5], [[8], 0.5]],
    "min_length": 9,
    "min_new_tokens": 3,
    "forced_eos_token_id": 1,
    "exponential_decay_length_penalty": [2, 1.4],
    "suppress_tokens": [9, 11],
    "begin_suppress_tokens": [10],
}


def write(tmp_path, content):
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [0, 1], **content}))
    return file


def theirs(content, prompt, answer, logits):
    """The scores that transformers' own processors make."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(
        eos_token_id=[0, 1], max_length=len(prompt) + LIMIT, **content
    )
    config._eos_token_tensor = torch.tensor([0, 1])
    model = type("Model", (transformers.generation.GenerationMixin,), {})()
    model.config = transformers.LlamaConfig(vocab_size=VOCABULARY)
    processors = model._get_logits_processor(config, input_ids_seq_length=len(prompt), device="cpu")
    ids = torch.tensor([[*prompt, *answer]])
    return processors(ids, torch.from_numpy(logits.copy())[None]).numpy()[0]


@settings(max_examples=60)
@given(data=st.data())
def test_scores_are_those_of_transformers(tmp_path_factory, data):
    names = data.draw(st.sets(st.sampled_from(sorted(RULES))))
    content = {name: RULES[name] for name in names}
    tokens = st.integers(0, VOCABULARY + 3)  # an embedding table may be longer than the output
    prompt = data.draw(st.lists(tokens, min_size=2, max_size=8))
    answer = data.draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=LIMIT - 1))
    seed = data.draw(st.integers(0, 99))
    logits = np.random.default_rng(seed).normal(0, 3, VOCABULARY).astype(np.float32)
    rules = load_token_rules(write(tmp_path_factory.mktemp("rules"), content))
    ours = LogitsProcessor(rules, np.array(prompt), LIMIT)(logits, answer)
    np.testing.assert_allclose(ours, theirs(content, prompt, answer, logits), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_changes_some_choice(tmp_path, name):
    rules = load_token_rules(write(tmp_path, {name: RULES[name]}))
    processor = LogitsProcessor(rules, np.array([2, 4, 7, 2]), LIMIT)
    logits = np.linspace(-1, 1, VOCABULARY).astype(np.float32)
    answers = ([], [4], [2, 4, 7], [2] * (LIMIT - 1))
    assert any((processor(logits, answer) != logits).any() for answer in answers)


def test_a_plain_config_changes_nothing(tmp_path):
    assert load_token_rules(write(tmp_path, {"repetition_penalty": 1.0})).change_nothing
    assert load_token_rules(write(tmp_path, {"bad_words_ids": [[0], [1]]})).change_nothing
    assert not load_token_rules(write(tmp_path, {"min_new_tokens": 1})).change_nothing


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 0),
        ("repetition_penalty", "1.2"),
        ("repetition_penalty", True),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", 2.5),
        ("bad_words_ids", [3]),
        ("bad_words_ids", [[]]),
        ("sequence_bias", [[[3]]]),
        ("sequence_bias", {"3": 1.0}),
        ("suppress_tokens", [-1]),
        ("suppress_tokens", {"a": 1}),
        ("begin_suppress_tokens", ["1"]),
        ("min_new_tokens", []),
        ("exponential_decay_length_penalty", [1]),
        ("exponential_decay_length_penalty", [1, float("nan")]),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(tmp_path, name, value):
    with pytest.raises(EngineDirectoryError, match=name):
        load_token_rules(write(tmp_path, {name: value}))


def test_sampler_remembers_what_it_chose(tmp_path):
    rules = load_token_rules(write(tmp_path, {"no_repeat_ngram_size": 1}))
    sampler = Sampler(SamplingOptions(), LogitsProcessor(rules, np.array([11]), LIMIT))
    logits = np.arange(VOCABULARY, dtype=np.float32)
    assert [sampler(logits) for _ in range(4)] == [10, 9, 8, 7]


def test_logits_on_a_device_are_fetched_where_rules_apply(tmp_path):
    class OnDevice:
        fetched = 0

        def best(self):
            return 11, 11.0

        def numpy(self):
            self.fetched += 1
            return np.arange(VOCABULARY, dtype=np.float32)

    logits = OnDevice()
    assert Sampler(SamplingOptions())(logits) == 11
    assert logits.fetched == 0
    rules = load_token_rules(write(tmp_path, {"suppress_tokens": [11]}))
    assert Sampler(SamplingOptions(), LogitsProcessor(rules, np.array([2]), LIMIT))(logits) == 10


def test_rules_that_bar_every_token_are_an_error(tmp_path):
    rules = load_token_rules(write(tmp_path, {"suppress_tokens": list(range(VOCABULARY))}))
    sampler = Sampler(SamplingOptions(), LogitsProcessor(rules, np.array([2]), LIMIT))
    with pytest.raises(NumericalError, match="bar every token"):
        sampler(np.zeros(VOCABULARY, np.float32))


# --- what is not done


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"num_beams": 4}, "num_beams=4"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"penalty_alpha": 0.6}, "penalty_alpha"),
        ({"do_sample": True, "typical_p": 0.9}, "typical_p=0.9"),
        ({"do_sample": True, "temperature": 0.2, "top_k": 40}, "--temperature 0.2 --top-k 40"),
        ({"do_sample": True, "min_p": 0.1}, "--temperature 1.0 --min-p 0.1"),
        ({"max_new_tokens": 64}, "--max-new-tokens 64"),
        ({"stop_strings": ["###", "\n"]}, '--stop "###" --stop "\\n"'),
    ],
)
def test_what_is_left_out_is_named(content, named):
    assert named in " ".join(describe_left_out(content))


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"num_beams": 1, "do_sample": False},
        {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "typical_p": 0.3},
        {"repetition_penalty": 1.2, "pad_token_id": 0, "use_cache": True},
        {"epsilon_cutoff": 0.0, "num_beams": None, "watermarking_config": None},
    ],
)
def test_nothing_is_said_where_nothing_is_left_out(content):
    assert describe_left_out(content) == ()
