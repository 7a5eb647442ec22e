"""Tokenizers that make no sense are refused, whatever the library does with them."""

from __future__ import annotations

import base64
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from divprune.runtime.errors import EngineDirectoryError, PromptError
from divprune.runtime.inputs import tokenizer_guard
from divprune.runtime.inputs.tokenization import TextTokenizer
from divprune.runtime.inputs.tokenizer_guard import check_character_maps, guarded


def write(tmp_path: Path, **parts: object) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    content = {**json.loads(tokenizer.to_str()), **parts}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def charsmap(blob: bytes) -> dict[str, object]:
    text = base64.b64encode(blob).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


SPECIAL = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "zz", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {},
}
HOSTILE = {
    "short map": charsmap(b"\0\0\0"),
    "map beyond its end": charsmap(struct.pack("<I", 0xFFFFFFFF) + bytes(4)),
    "map of odd length": charsmap(struct.pack("<I", 3) + bytes(8)),
    "map without a trie": charsmap(struct.pack("<I", 0) + bytes(8)),
    "map that is no base64": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "*" * 8}
    },
    "unknown token": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}},
    "special token": {"post_processor": SPECIAL},
    "fixed length of 0": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "empty unigram": {"model": {"type": "Unigram", "unk_id": None, "vocab": []}},
    "wordpiece": {
        "model": {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "zz",
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 0,
        }
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_makes_no_sense_never_ends_the_process(name: str, tmp_path: Path) -> None:
    """In a process of its own: some of these files have ended it."""
    code = (
        "import sys, pathlib\n"
        "from divprune.runtime.errors import DivPruneError\n"
        "from divprune.runtime.inputs.tokenization import TextTokenizer\n"
        "try:\n"
        "    TextTokenizer.from_dir(pathlib.Path(sys.argv[1])).encode('What aaaab')\n"
        "except DivPruneError as error:\n"
        "    sys.exit(2)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(write(tmp_path, **HOSTILE[name]))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"model": 1}', "\xff", '{"a":' * 9999]
)
def test_a_file_that_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(EngineDirectoryError, match=r"tokenizer\.json"):
        TextTokenizer.from_dir(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"a":' * 100_000, '{"a": "\\ud800"}', "3"])
def test_a_config_that_is_no_object_is_refused(content: str, tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(EngineDirectoryError, match=r"tokenizer_config\.json"):
        TextTokenizer.from_dir(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(EngineDirectoryError, match="no plain file"):
        TextTokenizer.from_dir(tmp_path)


def test_a_call_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_guard, "MAX_SECONDS", 0.05)
    with pytest.raises(TimeoutError, match="not done"):
        guarded(threading.Event().wait)


def test_a_panic_is_an_error_of_the_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    class Broken:
        def encode(self, *_: object, **__: object) -> None:
            raise Panic("index out of bounds")

    tokenizer = TextTokenizer.from_dir(write(tmp_path))
    monkeypatch.setattr(tokenizer, "_tokenizer", Broken())
    with pytest.raises(PromptError, match=r"Panic: index out of bounds"):
        tokenizer.encode("a")


def test_maps_that_are_whole_are_left_to_the_library() -> None:
    check_character_maps('{"precompiled_charsmap": null}')
    check_character_maps('{"precompiled_charsmap": ""}')
    blob = base64.b64encode(struct.pack("<I", 8) + bytes(12)).decode()
    check_character_maps(json.dumps({"precompiled_charsmap": blob}))
