"""Advice about a checkpoint: its files are mended as it says, and the export asked again."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.advice.covered import CHECKPOINTS
from tests.advice.tools import assert_gave, attempt

CONFIG, IMAGES = "config.json", "preprocessor_config.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
NEXT, QWEN, TILES, CROPS = "next-llama-hub", "qwen25-hub", "internvl-qwen2-hub", "smolvlm-llama"
SHARDS, WHOLE = "clip-llama-hub", "clip-llama-v4-gqa2-full"


@dataclass(frozen=True)
class Place:
    """A copy of a checkpoint that is damaged and mended.

    Attributes:
        path: The copy.
        original: What it is a copy of.
        get: Other checkpoints, by name.
    """

    path: Path
    original: Path
    get: Callable[[str], Path]


Step = Callable[[Place], object]


def again(place: Place) -> None:
    """Download the checkpoint again, into an empty directory."""
    shutil.rmtree(place.path)
    shutil.copytree(place.original, place.path)


def copied(*names: str) -> Step:
    """Copy files of the original model into the directory."""
    return lambda place: [shutil.copy(place.original / name, place.path) for name in names]


def without(*patterns: str) -> Step:
    def step(place: Place) -> None:
        for pattern in patterns:
            for file in place.path.glob(pattern):
                file.unlink()

    return step


def both(first: Step, second: Step) -> Step:
    return lambda place: (first(place), second(place))


def written(name: str, text: str) -> Step:
    return lambda place: (place.path / name).write_text(text)


def put(name: str, **values: Any) -> Step:
    """Set values by their keys, parts of which are joined by two underscores; ``...`` removes."""

    def step(place: Place) -> None:
        file = place.path / name
        content = json.loads(file.read_text()) if file.exists() else {}
        for key, value in values.items():
            *parents, last = key.split("__")
            part = content
            for parent in parents:
                part = part.setdefault(parent, {})
            part[last] = value
            if value is ...:
                del part[last]
        file.write_text(json.dumps(content))

    return step


def cut(pattern: str) -> Step:
    def step(place: Place) -> None:
        file = min(place.path.glob(pattern))
        file.write_bytes(file.read_bytes()[:-100])

    return step


def tensors(change: Callable[[dict[str, Any]], object]) -> Step:
    def step(place: Place) -> None:
        file = place.path / "model.safetensors"
        found = load_file(file)
        change(found)
        save_file({key: value.contiguous() for key, value in found.items()}, file)

    return step


def named(found: dict[str, Any], ending: str) -> str:
    return next(key for key in found if key.endswith(ending))


def shorten(ending: str) -> Step:
    def change(found: dict[str, Any]) -> None:
        name = named(found, ending)
        found[name] = found[name][:-1]

    return tensors(change)


def twice(place: Place) -> None:
    """A second shard with a key of another layout, as two downloads into one directory leave."""
    found = load_file(place.path / "model.safetensors")
    name = named(found, "layers.0.input_layernorm.weight")
    other = "language_model.model.layers.0.input_layernorm.weight"
    weight_map = dict.fromkeys(found, "model-1.safetensors") | {other: "model-2.safetensors"}
    (place.path / "model.safetensors").rename(place.path / "model-1.safetensors")
    save_file({other: found[name].clone()}, place.path / "model-2.safetensors")
    index = place.path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def reorder(place: Place) -> None:
    def change(found: dict[str, Any]) -> None:
        name = named(found, "g_idx")
        found[name] = found[name].flip(0)

    tensors(change)(place)


def no_placeholder(place: Place) -> None:
    """Write the tokenizer of the model before it learned to see."""
    file = place.path / "tokenizer.json"
    content = json.loads(file.read_text())
    text = next(t["content"] for t in content["added_tokens"] if t["id"] == 470)
    content["added_tokens"] = [t for t in content["added_tokens"] if t["id"] < 470]
    content["model"]["vocab"].pop(text, None)
    file.write_text(json.dumps(content))
    put("tokenizer_config.json", image_token=..., extra_special_tokens={})(place)


def write_template(place: Place) -> None:
    """Write the model's template to chat_template.jinja."""
    stored = json.loads((place.original / "chat_template.json").read_text())
    (place.path / "chat_template.jinja").write_text(stored["chat_template"])


def spoil(place: Place) -> None:
    for file in place.path.glob("*.safetensors"):
        found = load_file(file)
        for key in found:
            if key.endswith("layers.1.mlp.up_proj.weight"):
                found[key][3, 4] = float("nan")
        save_file(found, file)


TIED = {"tie_word_embeddings": True, "text_config__tie_word_embeddings": True}
UNTIED = dict.fromkeys(TIED, False)
HOW = json.dumps({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False})


def copy_how(place: Place) -> None:
    """Copy quantize_config.json into quantization_config."""
    put(CONFIG, quantization_config=json.loads(HOW))(place)


def use(name: str) -> Step:
    """Take another checkpoint."""

    def step(place: Place) -> None:
        shutil.rmtree(place.path)
        shutil.copytree(place.get(name), place.path)

    return step


def adapter(config: dict[str, Any] | None = None, **shapes: tuple[int, int]) -> Step:
    """Put a LoRA adapter of the first query projection beside the weights."""
    changed = {"A": (4, 64), "B": (64, 4), **shapes}
    found = {f"{QUERY}.lora_{key}.weight": torch.ones(shape) for key, shape in changed.items()}

    def step(place: Place) -> None:
        save_file(found, place.path / "adapter_model.safetensors")
        (place.path / "adapter_config.json").write_text(json.dumps({**LORA, **(config or {})}))

    return step


def pickled(place: Place, *, old: bool = False) -> None:
    """Save the weights as torch does, or as it did before its version 1.6."""
    file = place.path / "model.safetensors"
    found = load_file(file)
    file.unlink()
    torch.save(found, place.path / "pytorch_model.bin", _use_new_zipfile_serialization=not old)


def adapter_alone(**config: object) -> Step:
    """Leave nothing but an adapter, which names what it was trained on."""

    def step(place: Place) -> None:
        shutil.rmtree(place.path)
        place.path.mkdir()
        adapter(config)(place)

    return step


def adapter_of_adapter(place: Place) -> None:
    first = replace(place, path=Path(shutil.copytree(place.path, "first")))
    adapter_alone(base_model_name_or_path=str(place.original))(first)
    adapter_alone(base_model_name_or_path="first")(place)


def name_model(place: Place) -> None:
    """Write the model's directory to base_model_name_or_path."""
    put("adapter_config.json", base_model_name_or_path=str(place.original))(place)


def weight_decomposed(place: Place) -> None:
    """An adapter as peft trains it with DoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(place.original)
    config = LoraConfig(r=2, target_modules=r".*layers\.0\.self_attn\.q_proj", use_dora=True)
    shutil.rmtree(place.path)
    get_peft_model(model, config).save_pretrained(place.path)


PICKLED = ("weights from before torch 1.6",)
QUERY = "base_model.model.language_model.layers.0.self_attn.q_proj"
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
NO_ADAPTER = without("adapter_config.json")

CASES: dict[str, tuple[str, Step, Step]] = {
    # Name: (checkpoint, what damages it, what the advice says).
    "a shard that is missing": (SHARDS, without("model-00001*"), again),
    "an index without shards": (SHARDS, written("model.safetensors.index.json", "{}"), again),
    "no weights": (SHARDS, without("model*"), again),
    "a config cut off": (SHARDS, cut(CONFIG), again),
    "a shard cut off": (SHARDS, cut("model-*.safetensors"), again),
    "a pickle cut off": (WHOLE, both(pickled, cut("*.bin")), again),
    "a config of another model": (SHARDS, put(CONFIG, text_config__vocab_size=999), copied(CONFIG)),
    "two layouts of keys": ("clip-llama-v5-llama3-rope", twice, again),
    "a value out of range": (SHARDS, put(CONFIG, vision_config__patch_size=0), copied(CONFIG)),
    "a head that is not tied": (SHARDS, put(CONFIG, **TIED), put(CONFIG, **UNTIED)),
    "no tokenizer": (SHARDS, without("tokenizer*"), copied(*TOKENIZER)),
    "a tokenizer of another model": (SHARDS, no_placeholder, copied(*TOKENIZER)),
    "no image processor": (SHARDS, without(IMAGES, "processor_config.json"), copied(IMAGES)),
    "no chat template": (SHARDS, without("chat_template*"), write_template),
    "no end of an answer": (
        SHARDS,
        both(without("generation_config.json"), put(CONFIG, text_config__eos_token_id=None)),
        put("generation_config.json", eos_token_id=2),
    ),
    "a weight that is no number": (SHARDS, spoil, again),
    "packed, but not how": (
        "packed",
        both(written("quantize_config.json", HOW), put(CONFIG, quantization_config=...)),
        copy_how,
    ),
    "not packed": (
        "plain",
        put(CONFIG, quantization_config=json.loads(HOW)),
        put(CONFIG, quantization_config=...),
    ),
    "scales of another size": ("packed", shorten("down_proj.scales"), again),
    "groups of another size": (
        "packed",
        put(CONFIG, quantization_config__group_size=16),
        use("plain"),
    ),
    "groups that do not divide": (
        "packed",
        put(CONFIG, quantization_config__group_size=64),
        put(CONFIG, quantization_config__group_size=32),
    ),
    "act-order": ("packed", reorder, use("plain")),
    "three bits": ("packed", put(CONFIG, quantization_config__bits=3), use("plain")),
    "no planes of features": (
        "qwen3-hub-tied",
        put(CONFIG, vision_config__deepstack_visual_indexes=...),
        copied(CONFIG),
    ),
    "a processor that is unknown": (
        SHARDS,
        put(IMAGES, image_processor_type="EfficientNetImageProcessor"),
        copied(IMAGES),
    ),
    "a processor of another family": (
        TILES,
        put(IMAGES, image_processor_type="CLIPImageProcessor"),
        copied(IMAGES),
    ),
    "a processor that says too little": (TILES, put(IMAGES, image_mean=...), copied(IMAGES)),
    "tiles of another size": (
        TILES,
        put(IMAGES, size={"height": 24, "width": 24}),
        copied(IMAGES),
    ),
    "crops of another size": (
        CROPS,
        put(IMAGES, max_image_size={"longest_edge": 24}),
        copied(IMAGES),
    ),
    "an adapter of another model": (WHOLE, adapter(A=(4, 9)), both(again, adapter())),
    "an adapter on packed weights": ("packed", adapter(), both(use("plain"), adapter())),
    "half an adapter": (WHOLE, adapter(B=(64, 3)), adapter()),
    "an adapter without weights": (WHOLE, written("adapter_config.json", "{}"), NO_ADAPTER),
    "an adapter of nothing": (WHOLE, adapter_alone(), name_model),
    "an adapter of a model elsewhere": (
        WHOLE,
        adapter_alone(base_model_name_or_path="/no/such/model"),
        name_model,
    ),
    "an adapter of an adapter": (WHOLE, adapter_of_adapter, name_model),
}
# Those whose advice goes on with an option.
OPTIONS = {
    name: ["--quant", "int4"] for name in ("groups of another size", "act-order", "three bits")
}


@pytest.mark.parametrize("name", CASES)
def test_the_mended_checkpoint_is_taken(any_checkpoint, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source, damage, mend = CASES[name]
    original = any_checkpoint(source)
    place = Place(Path(shutil.copytree(original, "checkpoint")), original, any_checkpoint)
    words = f"divprune-export --model {place.path} --keep 0.3 --output engine".split()
    damage(place)
    refused = attempt(words, whole=False)
    assert_gave(refused, CHECKPOINTS[name])
    mend(place)
    mended = attempt([*words, *OPTIONS.get(name, [])], whole=False)
    assert mended.code == 0, (refused.message, mended.message)


@pytest.mark.parametrize("name", ["weights from before torch 1.6", "an adapter that is no LoRA"])
def test_the_advised_python_makes_what_is_taken(any_checkpoint, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    original = any_checkpoint(WHOLE)
    place = Place(Path(shutil.copytree(original, "checkpoint")), original, any_checkpoint)
    words = f"divprune-export --model {place.path} --keep 0.3 --output engine".split()
    if name in PICKLED:
        pickled(place, old=True)
    else:
        weight_decomposed(place)
    refused = attempt(words, whole=False)
    assert_gave(refused, CHECKPOINTS[name])
    command = shlex.split(refused.fix)
    assert command[:2] == ["python", "-c"]
    exec(command[2].rstrip(","), {})  # importing torch anew would take longer than all of it
    if name not in PICKLED:
        files = [file for file in original.iterdir() if not file.name.startswith("model")]
        [shutil.copy(file, "merged") for file in files if not Path("merged", file.name).exists()]
        words[2] = "merged"
    mended = attempt(words, whole=False)
    assert mended.code == 0, (refused.message, mended.message)


@pytest.mark.parametrize(
    ("source", "fields"),
    [
        *((SHARDS, {"image_token_index": number}) for number in (0, 1, 100, 475, 479)),
        (SHARDS, {"image_token_index": 470, "image_token_id": 3}),
        (NEXT, {"image_token_index": 9}),
        (QWEN, {"image_token_id": 1}),
        (QWEN, {"image_token_id": 3}),
        (TILES, {"image_token_id": 7}),
        (QWEN, {"video_token_id": 1}),
        (QWEN, {"video_token_id": 3}),
        ("onevision-qwen2-hub", {"video_token_index": 9}),
        ("next-video-llama-hub", {"video_token_index": 471}),
    ],
)
def test_the_number_of_the_placeholder_is_set_as_the_advice_says(
    any_checkpoint, tmp_path, monkeypatch, source, fields
):
    monkeypatch.chdir(tmp_path)
    original = any_checkpoint(source)
    place = Place(Path(shutil.copytree(original, "checkpoint")), original, any_checkpoint)
    put(CONFIG, **fields)(place)
    words = f"divprune-export --model {place.path} --keep 0.3 --output engine".split()
    refused = attempt(words, whole=False)
    assert_gave(refused, CHECKPOINTS["a placeholder of another number"])
    advice = re.fullmatch(r"set (\w+) to (\d+) in checkpoint/config\.json", refused.fix)
    assert advice is not None, refused.fix
    put(CONFIG, **{advice[1]: int(advice[2])})(place)
    mended = attempt(words, whole=False)
    assert mended.code == 0, (refused.message, mended.message)


def test_every_case_has_the_advice_that_it_follows():
    alone = {"weights from before torch 1.6", "an adapter that is no LoRA"}
    alone |= {"a placeholder of another number"}
    assert CASES.keys() | alone == CHECKPOINTS.keys()
