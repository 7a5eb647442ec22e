"""Checkpoints of LLaVA's original code: what is put together, and what is left as it was."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from original_checkpoints import original_name, write_original
from safetensors.torch import load_file, save_file

from checkpoints import write_hub_cache
from divprune.export.checkpoint.checkpoint import Checkpoint
from divprune.export.checkpoint.original.conversations import conversation_of
from divprune.export.checkpoint.source import resolve_model
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.inputs.chat_template import ChatTemplate
from divprune.runtime.reports.plan.source import find_model
from tests.export.checkpoint.quantization.packed_checkpoints import write_packed

TOWER_ID = "openai/clip-vit-large-patch14-336"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("clip-llama-hub", "clip-mistral-hub-gqa1")
QUERY = "language_model.layers.0.self_attn.q_proj.weight"
PROJECTOR = "multi_modal_projector.linear_1.weight"


@pytest.fixture
def same(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("clip-llama-hub")


@pytest.fixture
def original(same: Path, tmp_path: Path) -> Path:
    return write_original(tmp_path / "original", same)


@pytest.fixture
def hf_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty HF_HOME that the hub library, offline, looks into."""
    home = tmp_path / "hf"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return home


def change(path: Path, **settings: Any) -> None:
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **settings}))


def state(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_the_other_layout(
    name: str,
    inside: bool,
    pickled: bool,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    same = Checkpoint.open(checkpoint(name))
    path = write_original(
        tmp_path / "original", checkpoint(name), tower_inside=inside, pickled=pickled
    )
    source = resolve_model(str(path))
    opened = Checkpoint.open(source.path)
    opened.validate()
    assert opened.names() == same.names()
    for tensor in same.names():
        assert torch.equal(opened.read(tensor), same.read(tensor))


def test_packed_weights_stand_for_what_they_do_in_the_other_layout(
    same: Path, original: Path, tmp_path: Path
) -> None:
    write_packed(same, tmp_path / "packed", tmp_path / "plain", "gptq")
    stored = load_file(tmp_path / "packed" / "model.safetensors")
    for file in original.glob("*.safetensors*"):
        file.unlink()
    canonical_name = Checkpoint.open(same).family.canonical_name
    renamed = {original_name(canonical_name(key)): value for key, value in stored.items()}
    whole = {key: value for key, value in renamed.items() if "vision_tower" not in key}
    save_file(whole, original / "model.safetensors")
    how = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    change(original, quantization_config=how)
    source = resolve_model(str(original))
    opened, plain = Checkpoint.open(source.path), Checkpoint.open(tmp_path / "plain")
    opened.validate()
    assert opened.packed(QUERY) is not None
    assert torch.equal(opened.read(QUERY), plain.read(QUERY).float())


def test_nothing_of_the_users_changes_and_no_weight_is_copied(original: Path) -> None:
    (original / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (original / "generation_config.json").write_text('{"eos_token_id": 2, "max_length": 99}')
    before = state(original.parent)
    source = resolve_model(str(original))
    assert state(original.parent) == before
    weights = [file for file in source.path.iterdir() if file.suffix in (".safetensors", ".bin")]
    assert len(weights) == 3
    assert all(file.is_symlink() for file in weights)
    folder = source.path
    source.joined[0].cleanup()
    assert not folder.exists()


def test_the_name_in_the_manifest_is_the_one_that_was_given(original: Path) -> None:
    assert resolve_model(str(original)).model_id == str(original)


def test_a_tower_may_lie_beside_the_checkpoint(original: Path) -> None:
    change(original, mm_vision_tower=f"../{original.name}-tower")
    source = resolve_model(str(original))
    Checkpoint.open(source.path).validate()
    assert find_model(str(original)).dimensions.tower.hidden_size == 32


def test_a_tower_comes_from_the_hub(original: Path, hf_home: Path) -> None:
    change(original, mm_vision_tower=TOWER_ID)
    write_hub_cache(hf_home, TOWER_ID, original.with_name("original-tower"), COMMIT)
    source = resolve_model(str(original))
    Checkpoint.open(source.path).validate()
    assert find_model(str(original)).dimensions.tower.hidden_size == 32


def test_a_tower_that_is_not_in_the_cache_is_named_with_its_download(
    original: Path, hf_home: Path
) -> None:
    change(original, mm_vision_tower=TOWER_ID)
    with pytest.raises(CheckpointError) as caught:
        resolve_model(str(original))
    assert caught.value.fix == f"HF_HUB_OFFLINE=0 hf download {TOWER_ID}"
    with pytest.raises(CheckpointError) as planned:
        find_model(str(original))
    assert planned.value.fix == f"HF_HUB_OFFLINE=0 hf download {TOWER_ID} config.json"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/tower", "clip", "a/b/c"])
def test_a_tower_that_is_nowhere_is_refused(name: str, original: Path) -> None:
    change(original, mm_vision_tower=name)
    with pytest.raises(CheckpointError, match="mm_vision_tower"):
        resolve_model(str(original))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda path: change(path, mm_projector_type="linear"), "mm_projector_type"),
        (lambda path: change(path, hidden_size="64"), "hidden_size"),
        (lambda path: change(path, num_attention_heads=0), "num_attention_heads"),
        (lambda path: change(path, vocab_size=-3), "vocab_size"),
        (lambda path: (path / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda path: (path / "tokenizer.json").write_text("{"), "no tokenizer"),
        (lambda path: next(path.glob("*.safetensors")).unlink(), "shard"),
        (lambda path: next(path.glob("*.safetensors")).write_bytes(b"0"), "safetensors"),
        (
            lambda path: (path.with_name("original-tower") / "preprocessor_config.json").unlink(),
            "how pictures are prepared",
        ),
        (
            lambda path: (path.with_name("original-tower") / "model.safetensors").unlink(),
            "has no weights",
        ),
        (
            lambda path: (path.with_name("original-tower") / "config.json").write_text("[]"),
            "config.json",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_refused_by_its_name(
    damage: Callable[[Path], object], named: str, original: Path
) -> None:
    damage(original)
    with pytest.raises((CheckpointError, UnsupportedError), match=named):
        resolve_model(str(original))


def test_the_error_about_a_tokenizer_names_the_users_directory(original: Path) -> None:
    (original / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        resolve_model(str(original))
    assert str(original) in str(caught.value)
    assert "divprune-original-" not in str(caught.value)


# --- small files


def test_placeholders_get_numbers_that_no_token_has(original: Path) -> None:
    source = resolve_model(str(original))
    config = json.loads((source.path / "config.json").read_text())
    vocab = json.loads((original / "tokenizer.json").read_text())["model"]["vocab"]
    assert config["image_token_index"] not in vocab.values()


def test_a_template_that_knows_pictures_is_kept(original: Path) -> None:
    own = "{% for part in messages[0]['content'] %}{{ part.type == 'image' }}{% endfor %}"
    (original / "chat_template.jinja").write_text(own)
    source = resolve_model(str(original))
    assert (source.path / "chat_template.jinja").read_text() == own


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, [2]),
        ({"eos_token_id": 7}, [7]),
        ({"eos_token_id": [7, 2]}, [7, 2]),
        ({"temperature": 0.9}, [2]),
    ],
)
def test_ends_of_an_answer_are_those_of_the_checkpoint(
    given: Mapping[str, Any] | None, expected: Sequence[int], original: Path
) -> None:
    if given is not None:
        (original / "generation_config.json").write_text(json.dumps(given))
    source = resolve_model(str(original))
    written = json.loads((source.path / "generation_config.json").read_text())
    assert written == {**(given or {}), "eos_token_id": expected}


def test_the_token_that_ends_a_turn_ends_an_answer(same: Path, tmp_path: Path) -> None:
    path = write_original(tmp_path / "yi", same, tokens={477: "<|im_start|>", 478: "<|im_end|>"})
    source = resolve_model(str(path))
    written = json.loads((source.path / "generation_config.json").read_text())
    assert written["eos_token_id"] == [2, 478]


# --- conversations


class Vocabulary:
    """A tokenizer that has certain tokens."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


def said(role: str, text: str, *, picture: bool = False) -> dict[str, Any]:
    parts = [{"type": "text", "text": text}, *([{"type": "image"}] if picture else [])]
    return {"role": role, "content": parts}


TURNS = [said("user", "What?", picture=True), said("assistant", "A cat."), said("user", "Why?")]
SYSTEM = said("system", "Be short.")
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions."
)
LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
VICUNA_TURNS = " USER: <image>\nWhat? ASSISTANT: A cat.</s>USER: Why? ASSISTANT:"
MISTRAL_TURNS = "<image>\nWhat? [/INST] A cat. </s>[INST] Why? [/INST]"


def marked(system: str, start: str, middle: str, end: str) -> str:
    turns = [("system", system), ("user", "<image>\nWhat?"), ("assistant", "A cat.")]
    turns.append(("user", "Why?"))
    written = "".join(f"{start}{role}{middle}{text}{end}" for role, text in turns)
    return f"{written}{start}assistant{middle}"


@pytest.mark.parametrize(
    ("tokens", "text_model", "plain", "with_system"),
    [
        ((), "llama", VICUNA_SYSTEM + VICUNA_TURNS, "Be short." + VICUNA_TURNS),
        (
            (),
            "mistral",
            "[INST] " + MISTRAL_TURNS,
            "[INST] <<SYS>>\nBe short.\n<</SYS>>\n\n" + MISTRAL_TURNS,
        ),
        (
            ("<|im_end|>",),
            "llama",
            marked("Answer the questions.", "<|im_start|>", "\n", "<|im_end|>"),
            marked("Be short.", "<|im_start|>", "\n", "<|im_end|>"),
        ),
        (
            ("<|im_end|>",),
            "qwen2",
            marked("You are a helpful assistant.", "<|im_start|>", "\n", "<|im_end|>\n"),
            marked("Be short.", "<|im_start|>", "\n", "<|im_end|>\n"),
        ),
        (
            ("<|start_header_id|>",),
            "llama",
            marked(LLAMA_3_SYSTEM, "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
            marked("Be short.", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
        ),
    ],
    ids=["vicuna", "mistral", "yi", "qwen", "llama-3"],
)
def test_conversations_are_written_as_the_original_code_writes_them(
    tokens: tuple[str, ...], text_model: str, plain: str, with_system: str
) -> None:
    conversation = conversation_of(Vocabulary(*tokens), text_model)
    template = ChatTemplate(conversation.template("<image>"), {})
    assert template.render(TURNS) == plain
    assert template.render([SYSTEM, *TURNS]) == with_system


# --- adapters


def write_lora(path: Path, base: Path, tensors: Mapping[str, torch.Tensor], *, rank: int) -> None:
    """As the original trainer saves one: LoRA in one file, whole weights in another."""
    opened = {name: tensor for name, tensor in tensors.items() if "lora_" in name}
    torch.save(opened, path / "adapter_model.bin")
    whole = {name: tensor for name, tensor in tensors.items() if name not in opened}
    torch.save(whole, path / "non_lora_trainables.bin")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    config["base_model_name_or_path"] = str(base)
    (path / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("decoder_alone", [True, False])
def test_an_adapter_of_the_original_trainer_is_put_on_its_base(
    decoder_alone: bool, same: Path, original: Path, tmp_path: Path
) -> None:
    """Its base is the decoder that LLaVA was made of, or a whole LLaVA; the projector is new."""
    plain = Checkpoint.open(same)
    base = tmp_path / "base"
    if decoder_alone:
        write_decoder(base, plain)
        shutil.copy(original / "tokenizer.json", base)
    else:
        shutil.copytree(original, base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(original / name, adapter)
    a, b, projector = torch.randn(2, 64), torch.randn(64, 2), torch.randn(64, 32)
    module = "base_model.model." + original_name(QUERY).removesuffix(".weight")
    others = {
        "base_model.model." + original_name(name): plain.read(name)
        for name in plain.names()
        if name.startswith("multi_modal_projector")
    }
    others["base_model.model." + original_name(PROJECTOR)] = projector
    factors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    write_lora(adapter, base, {**factors, **others}, rank=2)
    source = resolve_model(str(adapter))
    opened = Checkpoint.open(source.path)
    opened.validate()
    assert torch.allclose(opened.read(QUERY), plain.read(QUERY) + 2 * b @ a, atol=1e-5)
    assert torch.equal(opened.read(PROJECTOR), projector)
    assert opened.names() == plain.names()


def write_decoder(path: Path, opened: Checkpoint) -> None:
    """The language model alone, as its own repository has it."""
    path.mkdir()
    names = [name for name in opened.names() if name.startswith(("language_model.", "lm_head."))]
    save_file({original_name(n): opened.read(n) for n in names}, path / "model.safetensors")
    content = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (path / "config.json").write_text(json.dumps(content))
