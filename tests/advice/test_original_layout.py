"""Advice about checkpoints of original code: it is done, and the export asked again."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from original_checkpoints import write_original
from original_internvl import write_original_internvl
from safetensors.torch import load_file, save_file

from tests.advice.covered import ORIGINAL
from tests.advice.tools import assert_gave, attempt
from tests.checkpoints import write_hub_cache

Step = Callable[[Path], object]


def name_tower(name: object) -> Step:
    def step(original: Path) -> None:
        config = original / "config.json"
        content = json.loads(config.read_text()) | {"mm_vision_tower": name}
        config.write_text(json.dumps(content))

    return step


def tower_of(original: Path) -> Path:
    return original.with_name(original.name + "-tower")


def without_processor(original: Path) -> None:
    (tower_of(original) / "preprocessor_config.json").unlink()


def again(original: Path) -> None:
    """Download the tower again, with its preprocessor_config.json."""
    shutil.copytree(original.with_name("hub"), tower_of(original), dirs_exist_ok=True)


def write_directory(original: Path) -> None:
    """Write the tower's directory to mm_vision_tower."""
    name_tower(str(tower_of(original)))(original)


CASES: dict[str, tuple[Step, Step]] = {
    # Name: (what damages it, what the advice says).
    "a tower that is nowhere": (name_tower("/no/such/tower"), write_directory),
    "a tower without its processor": (without_processor, again),
}


@pytest.fixture
def original(any_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    path = write_original(tmp_path / "original", any_checkpoint("clip-llama-hub"))
    shutil.copytree(tower_of(path), tmp_path / "hub")
    return path


def change(**settings: object) -> Step:
    def step(original: Path) -> None:
        content = json.loads((original / "config.json").read_text()) | settings
        (original / "config.json").write_text(json.dumps(content))

    return step


def with_lora(original: Path) -> None:
    """As the original code saves a model that it trains a LoRA of."""
    file, layer = original / "model.safetensors", "model.layers.0.self_attn.q_proj"
    tensors = load_file(file)
    weight = tensors.pop(f"language_model.{layer}.weight")
    inside = f"language_model.base_model.model.{layer}"
    a, b = torch.ones(2, weight.shape[1]), torch.ones(weight.shape[0], 2)
    tensors |= {f"{inside}.base_layer.weight": weight - 2 * b @ a}
    tensors |= {f"{inside}.lora_A.default.weight": a, f"{inside}.lora_B.default.weight": b}
    save_file(tensors, file)
    change(use_llm_lora=2)(original)


def merge(original: Path) -> None:
    """What the original code's tools/merge_lora.py does, into the same directory."""
    file, layer = original / "model.safetensors", "model.layers.0.self_attn.q_proj"
    tensors = load_file(file)
    inside = f"language_model.base_model.model.{layer}"
    a, b = (tensors.pop(f"{inside}.lora_{letter}.default.weight") for letter in "AB")
    merged = tensors.pop(f"{inside}.base_layer.weight") + 2 * b @ a
    save_file({**tensors, f"language_model.{layer}.weight": merged}, file)
    change(use_llm_lora=0)(original)


def without_pictures(original: Path) -> None:
    file = original / "tokenizer.json"
    shutil.copy(file, original.with_name("tokenizer.json"))
    file.write_text(file.read_text().replace('"<IMG_CONTEXT>"', '"<|unused|>"'))


def copy_tokenizer(original: Path) -> None:
    """Copy the tokenizer's files of the model that it was fine-tuned from."""
    shutil.copy(original.with_name("tokenizer.json"), original)


def write_conversation(original: Path) -> None:
    """Write the conversation to chat_template.jinja, with <IMG_CONTEXT> where a picture stands."""
    (original / "chat_template.jinja").write_text(
        "{% for message in messages %}{% for part in message['content'] %}"
        "{{ '<IMG_CONTEXT>' if part['type'] == 'image' else part['text'] }}"
        "{% endfor %}{% endfor %}"
    )


INTERNVL: dict[str, tuple[Step, Step]] = {
    # Name: (what damages it, what the advice says).
    "a LoRA that is not merged": (with_lora, merge),
    "a tokenizer without pictures": (without_pictures, copy_tokenizer),
    "a conversation of one's own": (change(template="my-own"), write_conversation),
}


@pytest.mark.parametrize("name", INTERNVL)
def test_the_mended_internvl_is_taken(
    any_checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    path = write_original_internvl(tmp_path / "original", any_checkpoint("internvl-qwen2-hub"))
    damage, mend = INTERNVL[name]
    damage(path)
    refused = attempt(words(path), whole=False)
    assert_gave(refused, ORIGINAL[name])
    mend(path)
    mended = attempt(words(path), whole=False)
    assert mended.code == 0, (refused.message, mended.message)


def words(original: Path) -> list[str]:
    output = original.with_name("engine")
    return f"divprune-export --model {original} --keep 0.3 --output {output}".split()


@pytest.mark.parametrize("name", CASES)
def test_the_mended_checkpoint_is_taken(original: Path, name: str) -> None:
    damage, mend = CASES[name]
    damage(original)
    refused = attempt(words(original), whole=False)
    assert_gave(refused, ORIGINAL[name])
    mend(original)
    mended = attempt(words(original), whole=False)
    assert mended.code == 0, (refused.message, mended.message)


def test_the_tower_of_the_advice_is_taken(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name_tower(None)(original)
    refused = attempt(words(original), whole=False)
    assert_gave(refused, ORIGINAL["no tower"])
    advice = re.fullmatch(r'.*"mm_vision_tower": "(.+)"', refused.fix)
    assert advice is not None, refused.fix
    write_hub_cache(tmp_path / "hf", advice[1], tower_of(original), "0" * 40)
    name_tower(advice[1])(original)
    mended = attempt(words(original), whole=False)
    assert mended.code == 0, mended.message
