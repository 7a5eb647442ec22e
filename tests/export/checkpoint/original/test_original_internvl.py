"""Checkpoints of InternVL's original code: what is put together, and what is left as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from original_internvl import original_name, tokenizer_of, write_original_internvl
from safetensors.torch import load_file, save_file
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.original.conversations import INTERNVL_2_5
from divprune.export.checkpoint.source import resolve_model
from divprune.export.checkpoint.tensor_file import read_tensor, rows_apart, stored_tensors
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.reports.plan.source import find_model

NAMES = ("internvl-qwen2-hub", "internvl-qwen3-tied", "internvl-qwen2-6b-tower")
TOWER = "vision_tower.encoder.layer.1.attention."
QUERY = "language_model.layers.0.self_attn.q_proj.weight"
OWN = "{% for part in messages[0]['content'] %}<IMG_CONTEXT>{% endfor %}"


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a name to a checkpoint in transformers' form."""
    folder = tmp_path_factory.mktemp("tiled")
    return cache(lambda name: write_tiled_checkpoint(folder / name, name))


@pytest.fixture
def same(tiled: Callable[[str], Path]) -> Path:
    return tiled("internvl-qwen2-hub")


@pytest.fixture
def original(same: Path, tmp_path: Path) -> Path:
    return write_original_internvl(tmp_path / "original", same)


def change(path: Path, **settings: Any) -> None:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **settings}))


def written(path: Path, name: str) -> Any:
    """A file of the directory in transformers' form."""
    source = resolve_model(str(path))
    return json.loads((source.path / name).read_text())


@pytest.mark.parametrize("other_files", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weights_and_tokens_are_those_of_the_other_layout(
    name: str, other_files: bool, tiled: Callable[[str], Path], tmp_path: Path
) -> None:
    same = Checkpoint.open(tiled(name))
    path = write_original_internvl(
        tmp_path / "original",
        tiled(name),
        pickled=other_files,
        slow_tokenizer=other_files,
    )
    source = resolve_model(str(path))
    opened = Checkpoint.open(source.path)
    opened.validate()
    assert opened.names() == same.names()
    for tensor in same.names():
        assert torch.equal(opened.read(tensor), same.read(tensor))
    vocab_size = same.config.text_config.vocab_size
    image_token_id = tokenizer_of(vocab_size).token_to_id("<IMG_CONTEXT>")
    assert opened.config.image_token_id == image_token_id
    planned = find_model(str(path)).dimensions
    assert replace(planned, name="") == replace(find_model(str(same.path)).dimensions, name="")


def test_nothing_of_the_users_changes_and_no_weight_is_copied(original: Path) -> None:
    (original / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (original / "generation_config.json").write_text('{"eos_token_id": 2, "max_length": 99}')

    def state() -> dict[str, str]:
        files = (file for file in original.iterdir() if file.is_file())
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    before = state()
    source = resolve_model(str(original))
    assert state() == before
    assert source.model_id == str(original)
    weights = list(source.path.glob("*.safetensors"))
    assert len(weights) == 1
    assert all(file.is_symlink() for file in weights)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: change(path, select_layer=-4), "select_layer"),
        (lambda path: change(path, use_llm_lora=16), "use_llm_lora"),
        (lambda path: change(path, template="Hermes-2"), "template Hermes-2"),
        (lambda path: change(path, template=None), "template None"),
        (lambda path: change(path, llm_config={"architectures": ["X"]}), "llm_config"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "no tokenizer"),
        (lambda path: (path / "model.safetensors").write_bytes(b"0"), "safetensors"),
        (lambda path: (path / "model.safetensors").unlink(), "has no weights"),
        (lambda path: (path / "config.json").write_text("[]"), "config.json"),
    ],
)
def test_what_is_missing_or_wrong_is_refused_by_its_name(
    damage: Callable[[Path], object], named: str, original: Path
) -> None:
    damage(original)
    with pytest.raises((CheckpointError, UnsupportedError), match=named):
        resolve_model(str(original))


@pytest.mark.parametrize(
    "missing", [("<img>",), ("</img>",), ("<IMG_CONTEXT>",), ("<img>", "</img>")]
)
def test_a_tokenizer_without_the_tokens_of_pictures_is_refused(
    missing: tuple[str, ...], original: Path
) -> None:
    file = original / "tokenizer.json"
    text = file.read_text()
    for token in missing:
        text = text.replace(json.dumps(token), json.dumps(f"<|{token[1:-1]}|>"))
    file.write_text(text)
    with pytest.raises(CheckpointError, match="no " + ", ".join(missing)):
        resolve_model(str(original))


# --- tensors that hold several


JOINED = {".attn.qkv": (".attn.q_proj", ".attn.k_proj", ".attn.v_proj")}


@pytest.mark.parametrize("shape", [(6, 5), (6,), (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_joined_layer_is_read_as_its_parts(
    shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    kind = "weight" if len(shape) > 1 else "bias"
    values = {f"a.attn.qkv.{kind}": torch.randn(shape).to(dtype), "b": torch.ones(7)}
    save_file(values, tmp_path / "model.safetensors")
    found = {
        part.key: read_tensor(part)
        for tensor in stored_tensors(tmp_path / "model.safetensors")
        for part in rows_apart(tensor, JOINED)
    }
    expected = values[f"a.attn.qkv.{kind}"].chunk(3)
    assert found.keys() == {*(f"a.attn.{part}_proj.{kind}" for part in "qkv"), "b"}
    for part, rows in zip("qkv", expected, strict=True):
        assert torch.equal(found[f"a.attn.{part}_proj.{kind}"], rows)


@pytest.mark.parametrize("key", ["a.attn.qkv.scale", "attn.qkv", "a.qkv.weight", "qkv.weight"])
def test_other_tensors_stay_whole(key: str, tmp_path: Path) -> None:
    save_file({key: torch.ones(6, 2)}, tmp_path / "model.safetensors")
    (tensor,) = stored_tensors(tmp_path / "model.safetensors")
    assert rows_apart(tensor, JOINED) == [tensor]


@pytest.mark.parametrize("rows", [1, 2, 4, 95, 97])
def test_a_joined_layer_with_rows_that_are_not_those_of_three_is_refused(
    rows: int, original: Path
) -> None:
    file = original / "model.safetensors"
    key = "vision_model.encoder.layers.0.attn.qkv.weight"
    save_file({**load_file(file), key: torch.ones(rows, 32)}, file)
    source = resolve_model(str(original))
    with pytest.raises(CheckpointError, match=key):
        Checkpoint.open(source.path)


# --- small files


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (1, 12)),
        ({"max_dynamic_patch": 6}, (1, 6)),
        ({"dynamic_image_size": False}, (1, 1)),
    ],
)
def test_pictures_are_cut_as_the_config_says_and_not_as_the_towers_processor(
    settings: dict[str, Any], expected: tuple[int, int], original: Path
) -> None:
    change(original, **settings)
    nested = {"image_processor": {"image_processor_type": "CLIPImageProcessor"}}
    (original / "processor_config.json").write_text(json.dumps(nested))
    source = resolve_model(str(original))
    processor = json.loads((source.path / "preprocessor_config.json").read_text())
    assert (processor["min_patches"], processor["max_patches"]) == expected
    assert processor["size"] == {"height": 16, "width": 16}
    assert not (source.path / "processor_config.json").exists()


@pytest.mark.parametrize("template", ["internvl2_5", "a template of one's own", None])
def test_a_template_that_knows_pictures_is_kept(template: str | None, original: Path) -> None:
    change(original, template=template)
    (original / "chat_template.jinja").write_text(OWN)
    source = resolve_model(str(original))
    assert (source.path / "chat_template.jinja").read_text() == OWN


@pytest.mark.parametrize("own", ["<image>", "<img></img>", "{{ messages }}", "<IMG_CONTEXT", ""])
def test_a_template_that_knows_no_pictures_is_replaced_and_said_to_be(
    own: str, original: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (original / "chat_template.jinja").write_text(own)
    source = resolve_model(str(original))
    written = (source.path / "chat_template.jinja").read_text()
    assert written == INTERNVL_2_5.template("<IMG_CONTEXT>")
    assert "does not write <IMG_CONTEXT>" in caplog.text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [505, 507]),
        ({"eos_token_id": 7}, [7, 507]),
        ({"eos_token_id": [506, 507, 505]}, [506, 507, 505]),
    ],
)
def test_the_end_of_a_turn_ends_an_answer(
    given: dict[str, Any] | None, expected: list[int], original: Path
) -> None:
    if given is not None:
        (original / "generation_config.json").write_text(json.dumps(given))
    assert written(original, "generation_config.json") == {"eos_token_id": expected}


def test_conversations_are_written_as_the_original_code_writes_them() -> None:
    template = ChatTemplate(INTERNVL_2_5.template("<IMG_CONTEXT>"), {})
    picture, video = {"type": "image"}, {"type": "video"}
    first = [{"type": "text", "text": "Image-1: "}, picture, {"type": "text", "text": "Image-2: "}]
    turns = [
        {"role": "user", "content": [*first, picture, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": [video, {"type": "text", "text": "Why?"}]},
    ]
    said = (
        "<|im_start|>user\nImage-1: <IMG_CONTEXT>\nImage-2: <IMG_CONTEXT>\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nA cat.<|im_end|>\n"
        "<|im_start|>user\n<video>\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    named = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合"  # noqa: RUF001
    named += "开发的多模态大语言模型。"
    assert template.render(turns) == f"<|im_start|>system\n{named}<|im_end|>\n{said}"
    system = {"role": "system", "content": [{"type": "text", "text": "Be short."}]}
    assert template.render([system, *turns]) == f"<|im_start|>system\nBe short.<|im_end|>\n{said}"


# --- adapters


def test_an_adapter_changes_the_decoder_and_the_joined_layers_of_the_tower(
    same: Path, original: Path, tmp_path: Path
) -> None:
    plain = Checkpoint.open(same)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    qkv = original_name(f"{TOWER}qkv")
    shapes = {original_name(QUERY).removesuffix(".weight"): (64, 64), qkv: (96, 32)}
    factors = {
        module: (torch.randn(2, inputs), torch.randn(outputs, 2))
        for module, (outputs, inputs) in shapes.items()
    }
    tensors = {}
    for module, (a, b) in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    config["base_model_name_or_path"] = str(original)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    source = resolve_model(str(adapter))
    opened = Checkpoint.open(source.path)
    opened.validate()
    deltas = {module: 2 * b @ a for module, (a, b) in factors.items()}
    (decoder, tower) = deltas.values()
    assert torch.allclose(opened.read(QUERY), plain.read(QUERY) + decoder, atol=1e-5)
    for part, delta in zip("qkv", tower.chunk(3), strict=True):
        name = f"{TOWER}{part}_proj.weight"
        assert torch.allclose(opened.read(name), plain.read(name) + delta, atol=1e-5)
