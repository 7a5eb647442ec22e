"""Which tokens end an answer."""

from __future__ import annotations

import json

import pytest

from divprune.runtime.errors import EngineDirectoryError
from divprune.runtime.generation.generation_config import load_eos_token_ids


@pytest.fixture
def file(tmp_path):
    return tmp_path / "generation_config.json"


@pytest.mark.parametrize(
    "value, expected", [(2, (2,)), ([128001, 128009], (128001, 128009)), (0, (0,))]
)
def test_one_id_and_a_list_are_read(file, value, expected):
    file.write_text(json.dumps({"bos_token_id": 1, "eos_token_id": value}))
    assert load_eos_token_ids(file) == expected


@pytest.mark.parametrize("value", [None, [], "2", 2.0, True, -1, [2, None], [[2]], {}])
def test_anything_else_is_an_error_that_shows_it(file, value):
    file.write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(EngineDirectoryError, match="which token ends an answer") as caught:
        load_eos_token_ids(file)
    assert caught.value.found == ("no such key" if value is None else json.dumps(value))


def test_missing_key_is_an_error(file):
    file.write_text("{}")
    with pytest.raises(EngineDirectoryError, match="no such key"):
        load_eos_token_ids(file)


@pytest.mark.parametrize("content", [None, "", "{", "[2]", "\udcff"])
def test_missing_or_damaged_file_is_an_error(file, content):
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(EngineDirectoryError, match=r"generation_config\.json"):
        load_eos_token_ids(file)
