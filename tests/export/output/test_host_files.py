"""What the host needs beside the graphs, from wherever a checkpoint keeps it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor, AutoTokenizer

from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.checkpoint.preprocessing import load_tokenizer
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.output import host_files
from divprune.export.output.host_files import (
    EMBEDDINGS,
    write_embeddings,
    write_host_files,
)
from divprune.runtime.errors import CheckpointError
from divprune.runtime.generation.embeddings import EmbeddingTable
from divprune.runtime.generation.generation_config import load_eos_token_ids
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.inputs.messages import question, read_messages
from divprune.runtime.inputs.prompt import build_prompt
from divprune.runtime.inputs.tokenization import TextTokenizer

QUESTION = "what is  in the image? naïve 日本 <image"
IMAGE_TOKEN_ID = 470


@pytest.fixture
def tiny(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """The files of a hub checkpoint, to be changed."""
    return Path(shutil.copytree(checkpoint("clip-llama-hub"), tmp_path / "tiny"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None takes a field away."""
    content = json.loads(file.read_text()) if file.exists() else {}
    content |= fields
    file.write_text(json.dumps({key: v for key, v in content.items() if v is not None}))


def write(checkpoint: Path, out: Path) -> Path:
    write_host_files(
        checkpoint, out, Checkpoint.open(checkpoint).config, load_tokenizer(checkpoint)
    )
    return out


def test_every_layout_gives_the_same_set_of_files(
    checkpoint: Callable[[str], Path], out: Path
) -> None:
    for name in ("clip-llama-hub", "siglip-qwen2-v4-tied", "siglip-qwen3-v5"):
        write(checkpoint(name), out)
        assert sorted(path.name for path in out.iterdir()) == [
            "chat_template.jinja",
            "generation_config.json",
            "preprocessor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]


# Embedding table


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_embedding_table_has_the_rows_of_the_checkpoint(
    checkpoint: Callable[[str], Path], out: Path, dtype: str
) -> None:
    source = Checkpoint.open(checkpoint("clip-llama-hub"))
    weights = WeightSource(source, expected_tensors(source.config), dtype)
    write_embeddings(out, weights)
    table = EmbeddingTable(out / "embed_tokens.safetensors")
    expected = source.read(EMBEDDINGS).numpy().astype(table.dtype)
    assert table.dtype == (np.float16 if dtype == "fp16" else np.float32)
    np.testing.assert_array_equal(table.rows(range(table.vocab_size)), expected)
    assert (out / "embed_tokens.safetensors").stat().st_mode & 0o444 == 0o444
    assert weights.unused([EMBEDDINGS]) == []


# Tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "config"),
    [
        ({}, {}),
        ({"post_processor": None}, {"add_bos_token": True}),
        ({"post_processor": None}, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}),
        ({}, {"add_bos_token": False, "tokenizer_class": "LlamaTokenizerFast"}),
        ({"normalizer": None}, {"legacy": False, "tokenizer_class": "LlamaTokenizer"}),
        ({}, {"tokenizer_class": None, "bos_token": "</s>"}),
    ],
    ids=["as-saved", "bos-by-config", "bos-by-llama", "no-bos", "not-legacy", "other-bos"],
)
def test_prompt_ids_are_those_of_transformers_processor(
    tiny: Path, out: Path, tokenizer: dict[str, Any], config: dict[str, Any]
) -> None:
    content = json.loads((tiny / "tokenizer.json").read_text()) | tokenizer
    (tiny / "tokenizer.json").write_text(json.dumps(content))
    change(tiny / "tokenizer_config.json", **config)
    write(tiny, out)

    processor = AutoProcessor.from_pretrained(tiny)
    ours = TextTokenizer.from_dir(out)
    assert ours.encode(QUESTION) == processor.tokenizer(QUESTION)["input_ids"]
    parts = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    template = ChatTemplate((out / "chat_template.jinja").read_text(), ours.special_tokens)
    prompt = build_prompt(
        read_messages(question(QUESTION, ["picture.png"])),
        [SimpleNamespace(kind="image", text="<image>", runs=(1,))],
        {"image": "<image>"},
        template,
        ours,
        [IMAGE_TOKEN_ID],
    )
    assert prompt.text == text
    assert prompt.ids.tolist() == processor.tokenizer(text)["input_ids"]


def test_a_tokenizer_in_sentencepiece_format_becomes_a_tokenizer_json(
    tiny: Path, out: Path
) -> None:
    pytest.importorskip("sentencepiece", reason="transformers converts tokenizer.model with it")
    write_sentencepiece_model(tiny / "tokenizer.model")
    (tiny / "tokenizer.json").unlink()
    change(tiny / "tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=True)
    write(tiny, out)
    text = "the image <image> thé"
    expected = AutoProcessor.from_pretrained(tiny).tokenizer(text)["input_ids"]
    assert TextTokenizer.from_dir(out).encode(text) == expected
    assert IMAGE_TOKEN_ID in expected


def write_sentencepiece_model(path: Path) -> None:
    """A BPE model with Llama's kinds of pieces: unknown, control, bytes, words."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = IMAGE_TOKEN_ID
    words = ["▁t", "he", "▁the", "▁i", "ma", "ge", "mage", "▁image", *"▁theimag"]
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
    pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    pieces += [(word, 1) for word in words]
    pieces += [(f"▁{number}", 1) for number in range(IMAGE_TOKEN_ID - len(pieces))]
    for rank, (piece, kind) in enumerate(pieces):
        model.pieces.add(piece=piece, type=kind, score=-float(rank))
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("content", [None, "", "{}", '{"model": 1}'])
def test_a_tokenizer_that_cannot_be_loaded_is_refused(
    tiny: Path, out: Path, content: str | None
) -> None:
    (tiny / "tokenizer.json").unlink()
    if content is not None:
        (tiny / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"no tokenizer that can be used(.|\n)*tokenizer\.js"):
        write(tiny, out)


def test_a_tokenizer_model_that_cannot_be_converted_names_the_converter(
    tiny: Path, out: Path
) -> None:
    (tiny / "tokenizer.json").rename(tiny / "tokenizer.model")
    change(tiny / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    with pytest.raises(CheckpointError, match="pip install sentencepiece"):
        write(tiny, out)


def test_a_full_disk_is_not_blamed_on_the_tokenizer(
    tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host_files.shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        write(tiny, out)


# Chat template


TEMPLATE_PLACES = (
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def put_template(checkpoint: Path, place: str, template: Any) -> None:
    if place.endswith(".jinja"):
        (checkpoint / place).write_text(template)
    else:
        change(checkpoint / place, chat_template=template)


@pytest.mark.parametrize("places", [TEMPLATE_PLACES[i:] for i in range(3)])
def test_of_several_chat_templates_the_one_of_transformers_wins(
    tiny: Path, out: Path, places: tuple[str, ...]
) -> None:
    (tiny / "chat_template.json").unlink()
    for place in (*places, "tokenizer_config.json"):
        put_template(tiny, place, f"from {place} {{{{ bos_token }}}}")
    write(tiny, out)
    template = (out / "chat_template.jinja").read_text()
    assert template == AutoProcessor.from_pretrained(tiny).chat_template
    assert places[0] in template


@pytest.mark.parametrize(
    "stored", ["a", [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]]
)
def test_the_tokenizers_chat_template_is_the_last_resort(
    tiny: Path, out: Path, stored: Any
) -> None:
    (tiny / "chat_template.json").unlink()
    put_template(tiny, "tokenizer_config.json", stored)
    write(tiny, out)
    assert (out / "chat_template.jinja").read_text() == "a"


@pytest.mark.parametrize("stored", [None, 3, [{"name": "tool_use", "template": "b"}], ["b"]])
def test_no_chat_template_is_refused_with_all_places_that_were_searched(
    tiny: Path, out: Path, stored: Any
) -> None:
    (tiny / "chat_template.json").unlink()
    put_template(tiny, "tokenizer_config.json", stored)
    with pytest.raises(CheckpointError, match="no chat template") as caught:
        host_files._chat_template(tiny)
    for place in (*TEMPLATE_PLACES, "tokenizer_config.json"):
        assert place in str(caught.value)


def test_a_chat_template_that_is_not_text_is_refused(tiny: Path, out: Path) -> None:
    (tiny / "chat_template.json").unlink()
    (tiny / "chat_template.jinja").write_bytes(b"\xff\xfe{{ messages }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8"):
        host_files._chat_template(tiny)


# generation_config.json


@pytest.mark.parametrize("eos", [0, 2, [2, 0]])
def test_eos_comes_from_the_config_where_generation_config_has_none(
    tiny: Path, out: Path, eos: Any
) -> None:
    change(tiny / "generation_config.json", eos_token_id=None, temperature=0.5)
    content = json.loads((tiny / "config.json").read_text())
    content["text_config"]["eos_token_id"] = eos
    (tiny / "config.json").write_text(json.dumps(content))
    write(tiny, out)
    ids = load_eos_token_ids(out / "generation_config.json")
    assert list(ids) == (eos if isinstance(eos, list) else [eos])
    assert json.loads((out / "generation_config.json").read_text())["temperature"] == 0.5


def test_eos_of_generation_config_wins(tiny: Path, out: Path) -> None:
    change(tiny / "generation_config.json", eos_token_id=[7, 8])
    write(tiny, out)
    assert load_eos_token_ids(out / "generation_config.json") == (7, 8)


def test_the_eos_of_the_whole_model_wins_over_that_of_its_text_model() -> None:
    config = SimpleNamespace(eos_token_id=0, text_config=SimpleNamespace(eos_token_id=5))
    assert host_files._generation_config(Path("/nowhere"), config)["eos_token_id"] == 0


def test_no_eos_at_all_is_refused(tiny: Path, out: Path) -> None:
    (tiny / "generation_config.json").unlink()
    content = json.loads((tiny / "config.json").read_text())
    content["text_config"]["eos_token_id"] = None
    (tiny / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no end-of-sequence token"):
        write(tiny, out)


# Image processor


def test_of_two_image_processor_configs_the_one_of_transformers_wins(tiny: Path, out: Path) -> None:
    nested = json.loads((tiny / "preprocessor_config.json").read_text())
    nested["image_mean"] = [0.25, 0.25, 0.25]
    change(tiny / "processor_config.json", image_processor=nested)
    write(tiny, out)
    written = json.loads((out / "preprocessor_config.json").read_text())
    theirs = AutoProcessor.from_pretrained(tiny).image_processor
    assert written["image_mean"] == list(theirs.image_mean) == [0.25, 0.25, 0.25]


def test_no_image_processor_config_is_refused(tiny: Path, out: Path) -> None:
    (tiny / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match="how pictures are prepared"):
        write(tiny, out)


@pytest.mark.parametrize("content", ["{", "[]"])
@pytest.mark.parametrize("name", ["generation_config.json", "processor_config.json"])
def test_a_damaged_json_file_is_named(tiny: Path, out: Path, name: str, content: str) -> None:
    (tiny / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{name} is not (a )?JSON"):
        write(tiny, out)


# What is left out is said


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_beams": 5}, "num_beams=5"),
        ({"do_sample": True, "temperature": 0.2}, "--temperature 0.2"),
        ({"do_sample": True, "typical_p": 0.5}, "typical_p=0.5"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"stop_strings": "###"}, "--stop"),
        ({"repetition_penalty": 1.2, "suppress_tokens": [3]}, None),
    ],
)
def test_generation_settings_that_are_left_out_are_named(
    tiny: Path,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    said: str | None,
) -> None:
    change(tiny / "generation_config.json", **fields)
    write(tiny, out)
    assert said in caplog.text if said else not caplog.text
    assert fields.items() <= json.loads((out / "generation_config.json").read_text()).items()


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("beyond", [1, 3, 8, 100])
def test_tokens_beyond_the_embedding_table_are_named(
    tiny: Path, out: Path, caplog: pytest.LogCaptureFixture, beyond: int, special: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    rows = Checkpoint.open(tiny).config.text_config.vocab_size
    added = [f"<loc_{n}>" for n in range(rows - len(tokenizer) + beyond)]
    tokenizer.add_tokens(added, special_tokens=special)
    first = next(token for token, index in tokenizer.get_vocab().items() if index == rows)
    tokenizer.save_pretrained(tiny)
    write(tiny, out)
    assert f"{beyond} tokens ({first}" in caplog.text


def test_tokens_within_the_embedding_table_are_nothing_to_say(
    tiny: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tiny, out)
    assert not caplog.text


@pytest.mark.parametrize("key", ["image_processor_type", "feature_extractor_type"])
@pytest.mark.parametrize("absent", [True, False])
def test_image_processor_without_a_type_is_the_models_own(
    tiny: Path, out: Path, key: str, absent: bool
) -> None:
    file = tiny / "preprocessor_config.json"
    content = json.loads(file.read_text())
    content.pop("image_processor_type")
    file.write_text(json.dumps(content if absent else {**content, key: None}))
    write(tiny, out)
    found = json.loads((out / "preprocessor_config.json").read_text())["image_processor_type"]
    theirs = type(AutoProcessor.from_pretrained(tiny).image_processor).__name__
    assert found.removesuffix("Pil") == theirs.removesuffix("Fast").removesuffix("Pil")


@pytest.mark.parametrize("number", [2**25, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_vocabulary_with_numbers_beyond_all_use_is_refused_at_once(tiny: Path, number: int):
    file = tiny / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["<0x0D>"] = number
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=str(number)):
        load_tokenizer(tiny)
