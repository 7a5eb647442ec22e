"""What generation_config.json says beyond sampling holds, token for token as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.generation.sampling import SamplingOptions
from tests.end_to_end.test_against_transformers import NEW_TOKENS, PROMPT, Reference
from tests.runtime.engine_copies import copy_engine


@pytest.fixture(scope="module")
def reference(checkpoint: Any, picture: Image.Image) -> Reference:
    return Reference(checkpoint("clip-llama-hub"), picture)


@pytest.fixture(scope="module")
def first_tokens(reference: Reference) -> list[int]:
    return reference.generate_unpruned()


RULES = {
    "nothing": lambda ids: {},
    "repetition_penalty": lambda ids: {"repetition_penalty": 2.0},
    "no_repeat_ngram_size": lambda ids: {"no_repeat_ngram_size": 2},
    "suppress_tokens": lambda ids: {"suppress_tokens": ids[:2]},
    "begin_suppress_tokens": lambda ids: {"begin_suppress_tokens": ids[:1]},
    "bad_words_ids": lambda ids: {"bad_words_ids": [ids[:2], ids[2:3]]},
    "min_new_tokens": lambda ids: {"eos_token_id": [2, ids[3]], "min_new_tokens": 9},
    "min_length": lambda ids: {"eos_token_id": [2, ids[1]], "min_length": 80},
    "forced_eos_token_id": lambda ids: {"forced_eos_token_id": 2},
    "sequence_bias": lambda ids: {"sequence_bias": [[ids[:1], -9.0], [ids[1:3], 4.0]]},
    "exponential_decay": lambda ids: {"exponential_decay_length_penalty": [3, 1.5]},
}


@pytest.mark.parametrize("name", RULES)
def test_token_ids_are_those_of_transformers(
    name: str,
    engine_dir: Path,
    reference: Reference,
    first_tokens: list[int],
    picture: Image.Image,
    tmp_path: Path,
) -> None:
    rules = {"eos_token_id": 2, **RULES[name](first_tokens)}
    directory = copy_engine(
        engine_dir, tmp_path / "e", files={"generation_config.json": json.dumps(rules).encode()}
    )
    ids = reference.model.generate(
        **reference.inputs, max_new_tokens=NEW_TOKENS, do_sample=False, **rules
    )
    expected = ids[0, reference.inputs["input_ids"].shape[1] :].tolist()
    pipeline = Pipeline.from_dir(directory)
    result = pipeline.generate(picture, PROMPT, keep=1.0, max_new_tokens=NEW_TOKENS).result
    assert list(result.token_ids) == expected


def test_a_penalty_that_is_asked_for_counts_before_that_of_the_model(
    engine_dir: Path, reference: Reference, picture: Image.Image
) -> None:
    ids = reference.model.generate(
        **reference.inputs, max_new_tokens=NEW_TOKENS, do_sample=False, repetition_penalty=1.3
    )
    expected = ids[0, reference.inputs["input_ids"].shape[1] :].tolist()
    pipeline = Pipeline.from_dir(engine_dir)
    options = SamplingOptions(repetition_penalty=1.3)
    result = pipeline.generate(
        picture, PROMPT, keep=1.0, max_new_tokens=NEW_TOKENS, sampling=options
    ).result
    assert list(result.token_ids) == expected


def test_answer_ends_before_a_text_that_stops_it(engine_dir: Path, picture: Image.Image) -> None:
    pipeline = Pipeline.from_dir(engine_dir)
    whole = pipeline.generate(picture, PROMPT, max_new_tokens=24).result
    stop = whole.text[len(whole.text) // 2 :][:3]
    generation = pipeline.generate(picture, PROMPT, max_new_tokens=24, stop=[stop, "\x00"])
    result = generation.result
    assert result.text == whole.text[: whole.text.index(stop)]
    assert result.finish_reason == "stop"
    assert len(result.token_ids) < len(whole.token_ids)
