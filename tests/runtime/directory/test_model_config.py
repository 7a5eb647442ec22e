"""The shape of a model from config.json: as transformers builds it from the same file."""

from __future__ import annotations

import json
import math

import pytest

from divprune.configs import list_presets, load_preset
from divprune.runtime.errors import CheckpointError, OptionError, UnsupportedError
from divprune.runtime.families import read_dimensions

NAMES = (
    "clip-llama-hub",
    "clip-llama-v4-gqa2-full",
    "clip-llama-v5-layers-biases",
    "siglip-qwen2-v4-tied",
    "siglip-qwen2-hub",
    "siglip-qwen3-v5",
    "clip-mistral-hub-gqa1",
)
LLAVA = {
    "model_type": "llava",
    "text_config": {"model_type": "llama"},
    "vision_config": {"model_type": "clip_vision_model"},
}


def numbers(shapes: dict[str, tuple[int, ...]], *starts: str) -> int:
    """Numbers in the matrices whose names begin so."""
    return sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if name.startswith(starts) and len(shape) > 1
    )


def counted(matrices) -> int:
    return sum(matrix.size * matrix.count for matrix in matrices)


def transformers_shapes(content: dict) -> dict[str, tuple[int, ...]]:
    pytest.importorskip("transformers")
    from transformers import LlavaConfig

    from divprune.export.checkpoint.checkpoint import expected_tensors

    return expected_tensors(LlavaConfig.from_dict(content))


def check_against_transformers(name: str, content: dict) -> None:
    found, shapes = read_dimensions(name, content), transformers_shapes(content)
    vocab, width = found.text.vocab_size, found.text.hidden_size
    assert shapes["language_model.embed_tokens.weight"] == (vocab, width)
    blocks = counted(found.text.matrices()) - vocab * width
    assert blocks == numbers(shapes, "language_model.layers.")
    layers = [f"vision_tower.encoder.layers.{i}." for i in range(found.tower.num_layers)]
    assert counted(found.tower_matrices()) == numbers(shapes, *layers)
    others = ("vision_tower.embeddings", "multi_modal_projector")
    assert counted(found.other_vision_matrices()) == numbers(shapes, *others)


@pytest.mark.parametrize("name", NAMES)
def test_matrices_are_those_that_transformers_builds(name, checkpoint) -> None:
    content = json.loads((checkpoint(name) / "config.json").read_text())
    check_against_transformers(name, content)


@pytest.mark.parametrize("name", NAMES)
def test_image_tokens_are_those_of_the_checkpoint(name, checkpoint) -> None:
    from tests.checkpoints import TINY_CHECKPOINTS

    content = json.loads((checkpoint(name) / "config.json").read_text())
    assert read_dimensions(name, content).num_image_tokens == (
        TINY_CHECKPOINTS[name].num_image_tokens
    )


@pytest.mark.parametrize("name", [n for n in list_presets() if load_preset(n).family == "llava"])
def test_presets_are_models_that_transformers_can_build(name) -> None:
    check_against_transformers(name, load_preset(name).config)


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tower", ["clip_vision_model", "siglip_vision_model"])
def test_what_a_config_leaves_out_is_what_transformers_fills_in(text, tower) -> None:
    pytest.importorskip("transformers")
    from transformers import LlavaConfig

    given = {
        "model_type": "llava",
        "text_config": {"model_type": text},
        "vision_config": {"model_type": tower},
    }
    full = LlavaConfig.from_dict(given).to_dict()
    assert read_dimensions("x", given) == read_dimensions("x", full)


def test_another_architecture_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="pixtral"):
        read_dimensions("x", {"model_type": "pixtral"})


@pytest.mark.parametrize(
    "change, error, named",
    [
        ({"text_config": {"model_type": "gpt2"}}, UnsupportedError, "gpt2"),
        ({"vision_config": None}, CheckpointError, "vision_config"),
        (
            {"text_config": {"model_type": "llama", "hidden_size": "4096"}},
            CheckpointError,
            "hidden_size",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, UnsupportedError, "bitsandb"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": 128}},
            OptionError,
            "bit width",
        ),
    ],
)
def test_what_cannot_be_planned_is_named(change, error, named) -> None:
    with pytest.raises(error, match=named):
        read_dimensions("x", LLAVA | change)


@pytest.mark.parametrize(
    "stated, expected",
    [
        ({"quant_method": "awq", "zero_point": True, "group_size": 128}, "int4-g128-asym"),
        ({"quant_method": "gptq", "sym": True, "group_size": 64}, "int4-g64-sym"),
    ],
)
def test_packed_checkpoints_say_how_they_are_quantised(stated, expected) -> None:
    content = LLAVA | {"quantization_config": stated | {"bits": 4}}
    assert str(read_dimensions("x", content).packed) == expected
