"""Configs of InternVL's original code in transformers' form."""

from __future__ import annotations

from typing import Any

import pytest

from divprune.configs import load_preset
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families import read_dimensions
from divprune.runtime.families._original_internvl import is_original, tile_range, translate

TOWER: dict[str, Any] = {
    "architectures": ["InternVisionModel"],
    "hidden_size": 1024,
    "image_size": 448,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-06,
    "model_type": "intern_vit_6b",
    "norm_type": "layer_norm",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "qk_normalization": False,
    "qkv_bias": True,
}
QWEN_2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
    "rope_theta": 1000000.0,
    "vocab_size": 151674,
}
QWEN_3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000,
    "vocab_size": 151936,
}
INTERNVL_3: dict[str, Any] = {
    "architectures": ["InternVLChatModel"],
    "model_type": "internvl_chat",
    "downsample_ratio": 0.5,
    "dynamic_image_size": True,
    "force_image_size": 448,
    "llm_config": QWEN_2,
    "max_dynamic_patch": 12,
    "min_dynamic_patch": 1,
    "pad2square": False,
    "ps_version": "v2",
    "select_layer": -1,
    "template": "internvl2_5",
    "tie_word_embeddings": False,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "use_thumbnail": True,
    "vision_config": TOWER,
}


@pytest.mark.parametrize(
    ("preset", "original"),
    [("internvl3-1b", INTERNVL_3), ("internvl3.5-1b", {**INTERNVL_3, "llm_config": QWEN_3})],
)
def test_a_released_model_has_the_shape_of_its_preset(
    preset: str, original: dict[str, Any]
) -> None:
    assert is_original(original)
    given = dict(load_preset(preset).config)
    assert read_dimensions(preset, translate(original)) == read_dimensions(preset, given)


def test_settings_of_the_original_code_get_their_names_in_transformers() -> None:
    tower = {**TOWER, "qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False}
    content = translate({**INTERNVL_3, "vision_config": tower}, image_token_id=151667)
    assert content["image_token_id"] == 151667
    assert content["image_seq_length"] == 256
    vision = content["vision_config"]
    assert vision["model_type"] == "internvl_vision"
    assert vision["use_qk_norm"] is True
    assert vision["attention_bias"] is False
    assert vision["norm_type"] == "rms_norm"
    assert content["text_config"]["rope_scaling"] == QWEN_2["rope_scaling"]


@pytest.mark.parametrize("tied", [False, True])
def test_the_decoder_says_whether_its_head_is_tied(tied: bool) -> None:
    original = {**INTERNVL_3, "llm_config": {**QWEN_2, "tie_word_embeddings": tied}}
    content = translate({**original, "tie_word_embeddings": not tied})
    assert content["tie_word_embeddings"] is tied
    assert content["text_config"]["tie_word_embeddings"] is tied


def test_a_packed_decoder_keeps_its_description() -> None:
    packed = {"quant_method": "awq", "bits": 4, "group_size": 128}
    content = translate({**INTERNVL_3, "quantization_config": packed})
    assert content["quantization_config"] == packed


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"select_layer": -2}, "select_layer"),
        ({"select_layer": [-1]}, "select_layer"),
        ({"select_layer": None}, "select_layer"),
        ({"ps_version": "v1"}, "ps_version"),
        ({"ps_version": None}, "ps_version"),
        ({"pad2square": True}, "pad2square"),
        ({"compress_seq": True}, "compress_seq"),
        ({"rope_pos_id_version": "v2pe_fix"}, "rope_pos_id_version"),
        ({"force_image_size": 224}, "force_image_size"),
        ({"use_thumbnail": False}, "use_thumbnail"),
        ({"use_thumbnail": None}, "use_thumbnail"),
        ({"vision_config": {**TOWER, "norm_type": "batch_norm"}}, "norm_type"),
        ({"vision_config": {**TOWER, "norm_type": ["layer_norm"]}}, "norm_type"),
        ({"vision_config": {**TOWER, "model_type": "siglip_vision_model"}}, "model_type"),
        (
            {"vision_config": {**TOWER, "qk_normalization": True, "layer_norm_eps": 1e-5}},
            "layer_norm_eps",
        ),
    ],
)
def test_what_transformers_has_no_place_for_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        translate({**INTERNVL_3, **changes})


@pytest.mark.parametrize("absent", ["ps_version", "use_thumbnail", "vision_config.model_type"])
def test_defaults_of_the_original_code_that_cannot_be_carried_are_refused(absent: str) -> None:
    part, _, key = absent.rpartition(".")
    content = {**INTERNVL_3, "vision_config": dict(TOWER)}
    del (content[part] if part else content)[key]
    with pytest.raises(UnsupportedError, match=absent):
        translate(content)


@pytest.mark.parametrize(
    "llm",
    [
        {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2"},
        {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"},
        {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"},
        {"architectures": ["GptOssForCausalLM"]},
        {"architectures": [["Qwen2ForCausalLM"]]},
        {"model_type": "qwen2_moe"},
    ],
)
def test_another_decoder_is_refused_by_name(llm: dict[str, Any]) -> None:
    named = str(llm.get("architectures", [llm.get("model_type")])[0])
    with pytest.raises(UnsupportedError) as caught:
        translate({**INTERNVL_3, "llm_config": llm})
    assert named in str(caught.value)


@pytest.mark.parametrize("key", ["use_llm_lora", "use_backbone_lora"])
@pytest.mark.parametrize("rank", [1, 16, 128, "16", True])
def test_a_lora_that_is_not_merged_is_refused_by_name(key: str, rank: object) -> None:
    with pytest.raises(UnsupportedError, match=key) as caught:
        translate({**INTERNVL_3, key: rank})
    assert "merge_lora.py" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llm_config": None}, "llm_config"),
        ({"llm_config": ["Qwen2ForCausalLM"]}, "llm_config"),
        ({"vision_config": "intern_vit_6b"}, "vision_config"),
        ({"downsample_ratio": 0}, "downsample_ratio"),
        ({"downsample_ratio": 2.0}, "downsample_ratio"),
        ({"downsample_ratio": "0.5"}, "downsample_ratio"),
        ({"downsample_ratio": float("nan")}, "downsample_ratio"),
        ({"vision_config": {**TOWER, "patch_size": 0}}, "patch_size"),
        ({"vision_config": {**TOWER, "image_size": [448, 448]}, "force_image_size": None}, "image"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch"),
        ({"max_dynamic_patch": None}, "max_dynamic_patch"),
        ({"min_dynamic_patch": 2.0}, "min_dynamic_patch"),
        ({"min_dynamic_patch": 13}, "min_dynamic_patch"),
        ({"max_dynamic_patch": 10**9}, "max_dynamic_patch"),
    ],
)
def test_parts_and_numbers_that_are_wrong_are_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        translate({**INTERNVL_3, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (1, 12)),
        ({"max_dynamic_patch": 6}, (1, 6)),
        ({"min_dynamic_patch": 2, "max_dynamic_patch": 4}, (2, 4)),
        ({"dynamic_image_size": False, "use_thumbnail": False}, (1, 1)),
        ({"max_dynamic_patch": 1, "use_thumbnail": False}, (1, 1)),
    ],
)
def test_a_picture_has_as_many_tiles_as_the_config_says(
    changes: dict[str, Any], expected: tuple[int, int]
) -> None:
    content = {**INTERNVL_3, **changes}
    translate(content)
    assert tile_range(content) == expected


@pytest.mark.parametrize(
    ("changes", "crops", "typical"),
    [
        ({}, 13, 13),
        ({"max_dynamic_patch": 6}, 7, 7),
        ({"max_dynamic_patch": 40}, 41, 13),
        ({"max_dynamic_patch": 2}, 3, 1),
        ({"dynamic_image_size": False}, 1, 1),
    ],
)
def test_a_plan_reckons_with_the_tiles_that_the_config_allows(
    changes: dict[str, Any], crops: int, typical: int
) -> None:
    dimensions = read_dimensions("a model", translate({**INTERNVL_3, **changes}))
    assert (dimensions.crops, dimensions.typical_crops) == (crops, typical)
    assert dimensions.num_image_tokens == 256 * crops
    assert dimensions.typical_image_tokens == 256 * typical


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model_type": None},
        {"model_type": "internvl"},
        {"model_type": ["internvl_chat"]},
        {"model_type": "internvl_chat_audio"},
        {"architectures": ["InternVLForConditionalGeneration"], "model_type": "internvl"},
    ],
)
def test_other_configs_are_none_of_the_original_code(content: dict[str, Any]) -> None:
    assert not is_original(content)
