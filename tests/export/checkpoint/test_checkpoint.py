"""Reading checkpoints: every layout in the wild, and every way in which one can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.checkpoint.random import files_of, write_random_checkpoint
from divprune.export.families.llava import LlavaFamily
from divprune.runtime.errors import CheckpointError, UnsupportedError
from tests.checkpoints import TINY_CHECKPOINTS, tiny_config, write_tiny_checkpoint

canonical_name = LlavaFamily.canonical_name

TIED = "siglip-qwen2-v4-tied"
EMBEDDINGS = "model.language_model.embed_tokens.weight"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint in one file, to be broken."""
    return write_tiny_checkpoint(tmp_path / "tiny", "clip-llama-v4-gqa2-full")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in several shards with an index."""
    return write_tiny_checkpoint(tmp_path / "sharded", "clip-llama-hub")


def change_config(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = path / "config.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = path / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


# What is read


@pytest.mark.parametrize("spec_name", TINY_CHECKPOINTS)
def test_tensors_are_those_that_transformers_loads(spec_name: str, tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path, spec_name)
    model = LlavaForConditionalGeneration.from_pretrained(path)
    loaded = {canonical_name(key): value for key, value in model.state_dict().items()}

    checkpoint = Checkpoint.open(path)
    checkpoint.validate()

    assert checkpoint.names() == expected_tensors(checkpoint.config).keys()
    for name in checkpoint.names():
        tensor = checkpoint.read(name)
        assert tuple(tensor.shape) == checkpoint.shape(name)
        assert checkpoint.dtype(name) == "F32"
        assert torch.equal(tensor, loaded[name]), name


@pytest.mark.parametrize("spec_name", TINY_CHECKPOINTS)
def test_greedy_text_of_a_tiny_checkpoint_varies_and_depends_on_the_picture(
    spec_name: str, tmp_path: Path
) -> None:
    path = write_tiny_checkpoint(tmp_path, spec_name)
    model = LlavaForConditionalGeneration.from_pretrained(path)
    processor = AutoProcessor.from_pretrained(path)
    part = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": part}], add_generation_prompt=True
    )
    answers = []
    for seed in (0, 1):
        pixels = np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8)
        inputs = processor(text=text, images=Image.fromarray(pixels), return_tensors="pt")
        is_image = inputs["input_ids"] == model.config.image_token_id
        assert is_image.sum() == TINY_CHECKPOINTS[spec_name].num_image_tokens
        ids = model.generate(**inputs, max_new_tokens=32, do_sample=False)[0]
        answers.append(ids[inputs["input_ids"].shape[1] :].tolist())
    assert min(len(set(answer)) for answer in answers) > 2
    assert answers[0] != answers[1]


@pytest.mark.parametrize("layout", ["hub", "v4", "v5"])
def test_random_checkpoint_of_every_layout_loads_without_a_missing_tensor(
    layout: Any, tmp_path: Path
) -> None:
    path = write_random_checkpoint(
        tmp_path, "llava-tiny", layout=layout, dtype="bf16", shard_size=100_000
    )
    Checkpoint.open(path).validate()
    model, info = LlavaForConditionalGeneration.from_pretrained(path, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_layout_v5_is_what_the_installed_transformers_writes(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path / "written", "clip-llama-v5-layers-biases")
    saved = tmp_path / "saved"
    LlavaForConditionalGeneration.from_pretrained(path).save_pretrained(saved)
    AutoProcessor.from_pretrained(path).save_pretrained(saved)

    keys = load_file(saved / "model.safetensors").keys()
    files = files_of(tiny_config(TINY_CHECKPOINTS["clip-llama-v5-layers-biases"]), "v5")
    assert {files.stored_name(canonical_name(key)) for key in keys} == set(keys)
    assert {file.name for file in saved.iterdir()} == {file.name for file in path.iterdir()}
    nested = json.loads((saved / "processor_config.json").read_text())["image_processor"]
    assert nested["size"] == files.image_processor()["size"]


@pytest.mark.parametrize(
    "key, name",
    [
        (
            "model.language_model.layers.0.mlp.up_proj.weight",
            "language_model.layers.0.mlp.up_proj.",
        ),
        (
            "language_model.model.layers.0.mlp.up_proj.weight",
            "language_model.layers.0.mlp.up_proj.",
        ),
        ("language_model.lm_head.weight", "lm_head."),
        ("lm_head.weight", "lm_head."),
        ("vision_tower.vision_model.pre_layrnorm.weight", "vision_tower.pre_layrnorm."),
        ("model.vision_tower.vision_model.pre_layrnorm.weight", "vision_tower.pre_layrnorm."),
        ("vision_tower.pre_layrnorm.weight", "vision_tower.pre_layrnorm."),
        ("model.multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1."),
    ],
)
def test_keys_of_all_layouts_have_one_canonical_name(key: str, name: str) -> None:
    assert canonical_name(key) == name + "weight"
    assert canonical_name(canonical_name(key)) == name + "weight"


@pytest.mark.parametrize("dtype, stored", [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_stored_type_is_kept(dtype: Any, stored: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path, "llava-tiny", dtype=dtype))
    expected = load_file(tmp_path / "model.safetensors")
    for key, tensor in expected.items():
        assert checkpoint.dtype(canonical_name(key)) == stored
        assert torch.equal(checkpoint.read(canonical_name(key)), tensor)


def test_reading_all_tensors_does_not_grow_the_resident_size(tmp_path: Path) -> None:
    # 24 tensors of 16 MiB are 384 MiB; mapped files would show as that much growth.
    path = write_tiny_checkpoint(tmp_path, "clip-llama-v4-gqa2-full")
    change_tensors(path, lambda tensors: tensors.update(large_tensors()))
    checkpoint = Checkpoint.open(path)
    names = [name for name in sorted(checkpoint.names()) if name.startswith("large")]
    checkpoint.read(names[0])
    before = resident_bytes()
    largest = 0
    for name in names:
        tensor = checkpoint.read(name)
        assert int(tensor[-1, 0]) == int(name.removeprefix("large."))
        largest = max(largest, resident_bytes())
    assert largest - before < 64 << 20


def large_tensors() -> dict[str, torch.Tensor]:
    return {f"large.{i}": torch.full((2048, 2048), float(i)) for i in range(24)}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_early_hub_config_with_the_text_models_architecture_is_read(tiny: Path) -> None:
    change_config(tiny, lambda config: config.update(architectures=["LlamaForCausalLM"]))
    Checkpoint.open(tiny).validate()


def test_buffers_of_older_transformers_are_ignored(tiny: Path) -> None:
    extra = {
        "model.vision_tower.vision_model.embeddings.position_ids": torch.arange(50)[None],
        "model.language_model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
    }
    change_tensors(tiny, lambda tensors: tensors.update(extra))
    checkpoint = Checkpoint.open(tiny)
    checkpoint.validate()
    assert not any("position_ids" in name or "inv_freq" in name for name in checkpoint.names())


# Tied embeddings


def test_stored_copy_of_a_tied_head_is_ignored(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path, TIED)
    change_tensors(path, lambda t: t.update({"lm_head.weight": t[EMBEDDINGS].clone()}))
    checkpoint = Checkpoint.open(path)
    checkpoint.validate()
    assert "lm_head.weight" not in checkpoint.names()


def test_tied_table_may_be_stored_as_the_head_alone(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path, TIED)
    table = load_file(path / "model.safetensors")[EMBEDDINGS]
    change_tensors(
        path, lambda tensors: tensors.update({"lm_head.weight": tensors.pop(EMBEDDINGS)})
    )
    checkpoint = Checkpoint.open(path)
    checkpoint.validate()
    assert torch.equal(checkpoint.read("language_model.embed_tokens.weight"), table)


def test_tied_head_with_other_values_is_refused(tmp_path: Path) -> None:
    path = write_tiny_checkpoint(tmp_path, TIED)
    change_tensors(path, lambda t: t.update({"lm_head.weight": t[EMBEDDINGS] + 1}))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        Checkpoint.open(path)


# What does not match the config


def test_missing_tensor_is_named_with_its_shape(tiny: Path) -> None:
    change_tensors(tiny, lambda tensors: tensors.pop("model.language_model.norm.weight"))
    with pytest.raises(CheckpointError, match=r"missing: language_model\.norm\.weight \[64\]"):
        Checkpoint.open(tiny).validate()


def test_unknown_tensor_is_named_with_its_shape(tiny: Path) -> None:
    change_tensors(tiny, lambda tensors: tensors.update({"model.adapter": torch.ones(2, 3)}))
    with pytest.raises(CheckpointError, match=r"unknown: adapter \[2, 3\]"):
        Checkpoint.open(tiny).validate()


def test_tensor_of_another_shape_is_named_with_both(tiny: Path) -> None:
    change_tensors(tiny, lambda tensors: tensors.update({"lm_head.weight": torch.ones(479, 64)}))
    expected = r"lm_head\.weight: expected \[480, 64\], found \[479, 64\]"
    with pytest.raises(CheckpointError, match=expected):
        Checkpoint.open(tiny).validate()


def test_only_five_problems_are_listed(tiny: Path) -> None:
    change_config(tiny, lambda config: config["text_config"].update(num_hidden_layers=2))
    with pytest.raises(CheckpointError, match=r"9 unknown(.|\n)*and 4 more") as caught:
        Checkpoint.open(tiny).validate()
    assert str(caught.value).count("unknown: ") == 5


def test_two_keys_for_one_tensor_are_both_named(tiny: Path) -> None:
    again = {"language_model.lm_head.weight": torch.ones(480, 64)}
    change_tensors(tiny, lambda tensors: tensors.update(again))
    with pytest.raises(
        CheckpointError, match=r"two keys mean the tensor lm_head\.weight"
    ) as caught:
        Checkpoint.open(tiny)
    assert "language_model.lm_head.weight in" in str(caught.value)


def test_tensor_that_is_not_there_is_an_error_by_name(tiny: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor lm_tail"):
        Checkpoint.open(tiny).read("lm_tail")


# Damaged files


@pytest.mark.parametrize("size", [0, 4, 100, -1, -100_000])
def test_truncated_file_is_named(size: int, tiny: Path) -> None:
    file = tiny / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors"):
        Checkpoint.open(tiny)


def load_order(path: Path) -> list[str]:
    """Keys in the order in which their data lies in the file."""
    content = (path / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    return sorted(header, key=lambda key: header[key]["data_offsets"])


def test_file_that_is_cut_after_opening_is_an_error(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    file = tiny / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    last = load_order(tiny)[-1]
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends inside"):
        checkpoint.read(canonical_name(last))


@pytest.mark.parametrize(
    "header",
    [b"[]", b"{", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}'],
)
def test_header_that_makes_no_sense_is_an_error(header: bytes, tiny: Path) -> None:
    content = len(header).to_bytes(8, "little") + header + b"\0" * 16
    (tiny / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        Checkpoint.open(tiny)


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        Checkpoint.open(sharded)


def test_index_that_leaves_the_directory_is_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(CheckpointError, match="outside its directory"):
        Checkpoint.open(sharded)


def test_index_without_a_map_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weight_map"):
        Checkpoint.open(sharded)


def test_directory_without_weights_says_what_is_there(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights(.|\n)*config\.json"):
        Checkpoint.open(tiny)


# Configs


def test_missing_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_config_that_is_no_json_object_is_an_error(content: str, tiny: Path) -> None:
    (tiny / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"not (a )?JSON"):
        Checkpoint.open(tiny)


def test_config_that_transformers_refuses_is_an_error(tiny: Path) -> None:
    change_config(tiny, lambda config: config["text_config"].update(model_type="nonesuch"))
    with pytest.raises(CheckpointError, match=r"cannot read(.|\n)*nonesuch"):
        Checkpoint.open(tiny)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["PixtralForConditionalGeneration"], "model_type": "pixtral"},
        {"architectures": ["LlavaXForConditionalGeneration"], "model_type": "llava_next"},
        {"architectures": ["LlavaXForConditionalGeneration"]},
        {"architectures": None, "model_type": "gemma3"},
    ],
)
def test_other_architecture_is_named_beside_the_supported_one(
    change: dict[str, Any], tiny: Path
) -> None:
    change_config(tiny, lambda config: config.update(change))
    found = (change["architectures"] or [change["model_type"]])[0]
    with pytest.raises(UnsupportedError, match=found) as caught:
        Checkpoint.open(tiny)
    assert "llava" in str(caught.value.expected).lower()


@pytest.mark.parametrize("where", [None, "text_config"])
def test_quantisation_method_is_named(where: str | None, tiny: Path) -> None:
    def add(config: dict[str, Any]) -> None:
        part = config if where is None else config[where]
        part["quantization_config"] = {"quant_method": "awq", "bits": 4}

    change_config(tiny, add)
    with pytest.raises(UnsupportedError, match="awq"):
        Checkpoint.open(tiny)


def test_integer_weights_are_refused_by_name(tiny: Path) -> None:
    whole = {"lm_head.weight": torch.ones(480, 64, dtype=torch.uint8)}
    change_tensors(tiny, lambda tensors: tensors.update(whole))
    with pytest.raises(UnsupportedError, match=r"lm_head\.weight is stored as U8"):
        Checkpoint.open(tiny)
