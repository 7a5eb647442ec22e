"""Configs of LLaVA's original code in transformers' form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from divprune.configs import load_preset
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families import read_dimensions
from divprune.runtime.families._original_llava import (
    is_original,
    tower_folder,
    tower_name,
    translate,
)

CLIP = {
    "model_type": "clip",
    "text_config": {"hidden_size": 768},
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
    },
}
SIGLIP = {
    "model_type": "siglip",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 384,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
    },
}
VICUNA_7B = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
    "tie_word_embeddings": False,
}
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
ANYRES |= {"image_grid_pinpoints": GRIDS}
QWEN_ONEVISION = {
    **{key: VICUNA_7B[key] for key in ("mm_projector_type", "num_hidden_layers")},
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "vocab_size": 152064,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "image_aspect_ratio": "anyres_max_9",
    "mm_patch_merge_type": "spatial_unpad",
    "image_grid_pinpoints": [[384 * i, 384 * j] for i in range(1, 7) for j in range(1, 7)],
}


@pytest.mark.parametrize(
    ("preset", "original", "tower"),
    [
        ("llava-1.5-7b", VICUNA_7B, CLIP),
        ("llava-1.6-vicuna-7b", {**VICUNA_7B, **ANYRES}, CLIP),
        ("llava-onevision-7b", QWEN_ONEVISION, SIGLIP),
    ],
)
def test_a_released_model_has_the_shape_of_its_preset(
    preset: str, original: dict[str, Any], tower: dict[str, Any]
) -> None:
    assert is_original(original)
    given = dict(load_preset(preset).config)
    text = {**given["text_config"], "vocab_size": original["vocab_size"]}
    expected = read_dimensions(preset, {**given, "text_config": text})
    assert read_dimensions(preset, translate(original, tower)) == expected


def test_the_vision_part_of_a_tower_is_as_good_as_the_whole() -> None:
    part = {**CLIP["vision_config"], "model_type": "clip_vision_model"}  # type: ignore[dict-item]
    assert translate(VICUNA_7B, part) == translate(VICUNA_7B, CLIP)


@pytest.mark.parametrize("layers", [26, 27])
@pytest.mark.parametrize("chosen", [-2, -1])
def test_of_a_siglip_the_output_in_front_of_its_last_layer_is_taken(
    layers: int, chosen: int
) -> None:
    original = {**QWEN_ONEVISION, "mm_vision_select_layer": chosen}
    content = translate(original, SIGLIP, tower_layers=layers)
    assert content["vision_feature_layer"] == 26
    assert content["vision_feature_select_strategy"] == "full"
    assert content["vision_config"]["num_hidden_layers"] == layers


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type"),
        ({"mm_projector_type": None}, "mm_projector_type"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type"),
        ({"s2": True}, "s2"),
        ({"mm_newline_position": "grid"}, "mm_newline_position"),
        ({"mm_vision_select_layer": "-2"}, "mm_vision_select_layer"),
        ({"mm_vision_select_layer": [-2, -5]}, "mm_vision_select_layer"),
        ({"mm_vision_select_feature": "slicefour_patch"}, "mm_vision_select_feature"),
        ({"mm_vision_select_feature": ["patch"]}, "mm_vision_select_feature"),
        ({"image_aspect_ratio": "highres"}, "image_aspect_ratio"),
        ({"image_aspect_ratio": "anyres_max_0"}, "image_aspect_ratio"),
        ({"image_aspect_ratio": ["pad"]}, "image_aspect_ratio"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({**ANYRES, "mm_patch_merge_type": "flat"}, "mm_patch_merge_type"),
    ],
)
def test_what_transformers_has_no_place_for_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        translate({**VICUNA_7B, **changes}, CLIP)


@pytest.mark.parametrize(
    "tower",
    [
        {},
        {"model_type": "eva_clip"},
        {"model_type": "dinov2", "hidden_size": 1024},
        {"model_type": ["clip"]},
        {"model_type": "clip", "vision_config": 7},
    ],
)
def test_a_tower_of_another_kind_is_refused(tower: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="kind"):
        translate(VICUNA_7B, tower)


@pytest.mark.parametrize("layers", [0, -1, "27", 2.5, None])
def test_a_number_of_layers_that_is_none_is_refused(layers: object) -> None:
    tower = {"model_type": "siglip", "vision_config": {"num_hidden_layers": layers}}
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        translate(QWEN_ONEVISION, tower)


@pytest.mark.parametrize("name", [None, "", 7, ["a"], "x" * 5000])
def test_a_config_without_a_tower_says_what_belongs_there(name: object) -> None:
    with pytest.raises(CheckpointError, match="mm_vision_tower"):
        tower_name({**VICUNA_7B, "mm_vision_tower": name})


@pytest.mark.parametrize("name", ["nowhere", "x" * 300, "a\0b", "\ud800", "~nobody-here/x"])
def test_a_name_that_no_directory_can_have_is_none(name: str, tmp_path: Path) -> None:
    assert tower_folder(name, tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"architectures": None},
        {"architectures": "LlavaLlamaForCausalLM"},
        {"architectures": ["LlavaMptForCausalLM"]},
        {"architectures": ["LlavaForConditionalGeneration"], "text_config": {}},
        {"architectures": ["LlavaLlamaForCausalLM"], "text_config": {}},
        {"architectures": [["LlavaLlamaForCausalLM"]]},
    ],
)
def test_other_configs_are_none_of_the_original_code(content: dict[str, Any]) -> None:
    assert not is_original(content)
