"""The InternVL family: what it refuses, its tensors, and its features against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from divprune.export.families.internvl import InternVLFamily
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families import read_dimensions

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": [16, 16],
    "patch_size": [4, 4],
    "attention_bias": True,
}
_TEXT = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 480,
}
TOWERS: dict[str, dict[str, Any]] = {
    "300M": {},
    "6B": {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False},
    "final norm": {"use_mean_pooling": False},
    "mask token": {"use_mask_token": True},
    "no positions": {"use_absolute_position_embeddings": False},
}


def config(vision: dict[str, Any] | None = None, **changes: Any) -> transformers.InternVLConfig:
    common = {"image_token_id": 470, "image_seq_length": 4, "tie_word_embeddings": False}
    parts = {"vision_config": {**_VISION, **(vision or {})}, "text_config": _TEXT}
    return transformers.InternVLConfig(**parts, **{**common, **changes})


def random_model(settings: transformers.InternVLConfig) -> Any:
    torch.manual_seed(0)
    model = transformers.InternVLForConditionalGeneration(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def with_weights(module: torch.nn.Module, model: Any) -> torch.nn.Module:
    """The module with the values of a whole model, found by their canonical names."""
    canonical = InternVLFamily.canonical_name
    values = {canonical(key): value for key, value in model.state_dict().items()}
    filled = module.to_empty(device="cpu")
    filled.load_state_dict({key: values[canonical(key)] for key in filled.state_dict()})
    return filled


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("crops", [1, 5])
def test_features_are_those_of_transformers(name: str, crops: int) -> None:
    settings = config(TOWERS[name])
    model, pixels = random_model(settings), torch.randn(crops, 3, 16, 16)
    module = with_weights(InternVLFamily(settings).vision_module(), model)
    with torch.no_grad():
        features = module(pixels)
        expected = model.model.get_image_features(pixels).pooler_output.flatten(0, 1)
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    assert features.shape == (4 * crops, 64)


def test_the_projector_reads_joined_patches() -> None:
    settings = config()
    family = InternVLFamily(settings)
    model, rows = random_model(settings), torch.randn(3, family.tower.feature_size)
    projector = with_weights(family.projector_module(), model)
    with torch.no_grad():
        expected = model.model.multi_modal_projector(rows[None])[0]
        torch.testing.assert_close(projector(rows), expected)


@pytest.mark.parametrize("name", TOWERS)
def test_the_module_is_traced_once_for_any_number_of_crops(name: str) -> None:
    family = InternVLFamily(config(TOWERS[name]))
    (pixels,) = family.vision_inputs()
    assert pixels.shape == ("crops", 3, 16, 16)
    example = torch.zeros(5, 3, 16, 16, device="meta")
    crops = torch.export.Dim("crops", min=1, max=13)
    program = torch.export.export(family.vision_module(), (example,), dynamic_shapes=({0: crops},))
    (name_of_output,) = program.graph_signature.user_outputs
    (output,) = (node for node in program.graph.nodes if node.name == name_of_output)
    assert str(output.meta["val"].shape[0]).startswith("4*")


@pytest.mark.parametrize("name", TOWERS)
def test_every_tensor_of_the_tower_is_read_or_named_as_unused(name: str) -> None:
    settings = config(TOWERS[name])
    family = InternVLFamily(settings)
    module = dict(family.vision_module().named_parameters())
    assert all(parameter.is_meta for parameter in module.values())
    model = transformers.InternVLForConditionalGeneration(settings)
    canonical = {InternVLFamily.canonical_name(key) for key in model.state_dict()}
    tower = {key for key in canonical if key.startswith(("vision_tower", "multi_modal"))}
    assert {InternVLFamily.canonical_name(key) for key in module} == tower
    assert family.unused_tensors() <= tower


@pytest.mark.parametrize(
    ("hub", "v5"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight",) * 2,
        ("language_model.model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("vision_tower.embeddings.cls_token", "model.vision_tower.embeddings.cls_token"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
    ],
)
def test_both_key_layouts_have_the_same_names(hub: str, v5: str) -> None:
    canonical = InternVLFamily.canonical_name(hub)
    assert canonical == InternVLFamily.canonical_name(v5)
    assert not canonical.startswith("model.")


@pytest.mark.parametrize(
    ("original", "canonical"),
    [
        ("embeddings.class_embedding", "embeddings.cls_token"),
        ("embeddings.position_embedding", "embeddings.position_embeddings"),
        ("embeddings.patch_embedding.bias", "embeddings.patch_embeddings.projection.bias"),
        (
            "encoder.layers.11.attn.proj.weight",
            "encoder.layer.11.attention.projection_layer.weight",
        ),
        ("encoder.layers.11.attn.q_proj.weight", "encoder.layer.11.attention.q_proj.weight"),
        ("encoder.layers.0.attn.k_norm.weight", "encoder.layer.0.attention.k_norm.weight"),
        ("encoder.layers.0.norm1.bias", "encoder.layer.0.layernorm_before.bias"),
        ("encoder.layers.0.norm2.weight", "encoder.layer.0.layernorm_after.weight"),
        ("encoder.layers.0.mlp.fc1.bias", "encoder.layer.0.mlp.fc1.bias"),
        ("encoder.layers.0.ls1", "encoder.layer.0.lambda_1"),
        ("encoder.layers.0.ls2", "encoder.layer.0.lambda_2"),
    ],
)
def test_names_of_the_original_tower_become_those_of_transformers(
    original: str, canonical: str
) -> None:
    name = f"vision_tower.{canonical}"
    assert InternVLFamily.canonical_name(f"vision_model.{original}") == name
    assert InternVLFamily.canonical_name(name) == name


@pytest.mark.parametrize(
    ("original", "canonical"),
    [
        ("mlp1.0.weight", "multi_modal_projector.layer_norm.weight"),
        ("mlp1.1.bias", "multi_modal_projector.linear_1.bias"),
        ("mlp1.3.weight", "multi_modal_projector.linear_2.weight"),
        ("language_model.model.norm.weight", "language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
    ],
)
def test_names_of_the_original_projector_and_decoder_become_those_of_transformers(
    original: str, canonical: str
) -> None:
    assert InternVLFamily.canonical_name(original) == canonical
    assert InternVLFamily.canonical_name(canonical) == canonical


def test_facts_are_those_of_the_config() -> None:
    family = InternVLFamily(config())
    assert family.facts() == {"tile_size": 16, "tile_side": 2}
    assert family.image_token_id == family.video_token_id == 470
    assert family.patch_grid is None
    assert not family.tied_head
    assert family.tower.num_positions == 17
    assert family.tower.feature_size == 128


@pytest.mark.parametrize("vision", [{}, {"image_size": 32}])
def test_the_plan_reads_the_same_shape_from_the_config(vision: dict[str, Any]) -> None:
    seq = (vision.get("image_size", 16) // 8) ** 2
    settings = config(vision, image_seq_length=seq)
    dimensions = read_dimensions("made-up", settings.to_dict())
    assert dimensions.tower == InternVLFamily(settings).tower
    assert dimensions.num_image_tokens == 13 * seq
    assert dimensions.text.num_kv_heads == 2


def test_defaults_of_the_plan_are_those_of_transformers() -> None:
    settings = transformers.InternVLConfig(text_config=_TEXT)
    stated = {"vision_config": {}, "text_config": _TEXT, "model_type": "internvl"}
    assert read_dimensions("made-up", stated).tower == InternVLFamily(settings).tower


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "internvl_chat"},
        {"model_type": None},
        {"architectures": ["InternVLChatModel"]},
        {"architectures": ["InternVLModel"]},
        {"architectures": ["InternVLForConditionalGeneration", "InternVLModel"]},
    ],
)
def test_other_architectures_are_refused_by_name(changes: dict[str, Any]) -> None:
    content = config().to_dict() | {"architectures": None}
    InternVLFamily.check(content)
    with pytest.raises(UnsupportedError, match="InternVL"):
        InternVLFamily.check(content | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vision_feature_layer": -2}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy"),
        ({"downsample_ratio": 0.3}, "downsample_ratio"),
        ({"downsample_ratio": 0.125}, "downsample_ratio"),
        ({"image_seq_length": 256}, "image_seq_length"),
        ({"vision": {"image_size": [16, 32]}}, "vision_config.image_size"),
        ({"vision": {"patch_size": [4, 2]}}, "vision_config.patch_size"),
    ],
)
def test_settings_that_cannot_be_carried_are_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        InternVLFamily(config(**changes))
