"""The SmolVLM family: what it refuses, its tensors, and its features against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from divprune.export.families.idefics3 import Idefics3Family
from divprune.export.families.smolvlm import SmolVLMFamily
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families import read_dimensions

FAMILIES = [SmolVLMFamily, Idefics3Family]
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
_TEXT = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 480,
}
# Image size, patch size, shuffle factor: 2 x 2, 3 x 3 and the 27 x 27 patches of the 2.2B model.
GRIDS = [(16, 4, 2), (24, 4, 3), (109, 4, 3)]


def config(family: type[SmolVLMFamily] = SmolVLMFamily, **changes: Any) -> Any:
    name = "SmolVLMConfig" if family is SmolVLMFamily else "Idefics3Config"
    vision = {**_VISION, **changes.pop("vision", {})}
    common = {"image_token_id": 470, "scale_factor": 2, "tie_word_embeddings": False}
    parts = {"vision_config": vision, "text_config": _TEXT}
    return getattr(transformers, name)(**parts, **{**common, **changes})


def random_model(family: type[SmolVLMFamily], settings: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, family.architecture)(settings).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def with_weights(module: torch.nn.Module, model: Any) -> torch.nn.Module:
    """The module with the values of a whole model, found by their canonical names."""
    canonical = SmolVLMFamily.canonical_name
    values = {canonical(key): value for key, value in model.state_dict().items()}
    filled = module.to_empty(device="cpu")
    filled.load_state_dict({key: values[canonical(key)] for key in filled.state_dict()})
    return filled


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("size", "patch", "factor"), GRIDS)
@pytest.mark.parametrize("crops", [1, 5])
def test_features_are_those_of_transformers(
    family: type[SmolVLMFamily], size: int, patch: int, factor: int, crops: int
) -> None:
    vision = {"image_size": size, "patch_size": patch}
    settings = config(family, vision=vision, scale_factor=factor)
    model, pixels = random_model(family, settings), torch.randn(crops, 3, size, size)
    module = with_weights(family(settings).vision_module(), model)
    with torch.no_grad():
        features = module(pixels)
        (expected,) = model.model.get_image_features(pixels[None]).pooler_output
    torch.testing.assert_close(features, expected, rtol=0, atol=0)
    assert len(features) == crops * family(settings).facts()["crop_side"] ** 2


def test_the_projector_reads_joined_patches() -> None:
    settings = config()
    family = SmolVLMFamily(settings)
    model = random_model(SmolVLMFamily, settings)
    rows = torch.randn(3, family.tower.feature_size)
    projector = with_weights(family.projector_module(), model)
    with torch.no_grad():
        expected = model.model.connector.modality_projection(rows)
        torch.testing.assert_close(projector(rows), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_is_traced_once_for_any_number_of_crops(family: type[SmolVLMFamily]) -> None:
    made = family(config(family))
    (pixels,) = made.vision_inputs()
    assert pixels.shape == ("crops", 3, 16, 16)
    example = torch.zeros(5, 3, 16, 16, device="meta")
    crops = torch.export.Dim("crops", min=1, max=17)
    program = torch.export.export(made.vision_module(), (example,), dynamic_shapes=({0: crops},))
    (name_of_output,) = program.graph_signature.user_outputs
    (output,) = (node for node in program.graph.nodes if node.name == name_of_output)
    assert str(output.meta["val"].shape[0]).startswith("4*")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_the_tower_is_read(family: type[SmolVLMFamily]) -> None:
    settings = config(family)
    module = dict(family(settings).vision_module().named_parameters())
    assert all(parameter.is_meta for parameter in module.values())
    model = getattr(transformers, family.architecture)(settings)
    canonical = {family.canonical_name(key) for key in model.state_dict()}
    text = ("language_model.", "lm_head.")
    assert {family.canonical_name(key) for key in module} == {
        key for key in canonical if not key.startswith(text)
    }
    assert "language_model.layers.0.mlp.up_proj.weight" in canonical


def test_facts_are_those_of_the_config() -> None:
    family = SmolVLMFamily(config())
    assert family.facts() | {"video_template": ""} == {
        "crop_size": 16,
        "crop_side": 2,
        "video_template": "",
    }
    assert family.image_token_id == family.video_token_id == 470
    assert family.patch_grid is None
    assert family.tower.feature_size == 128


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_reads_the_same_shape_from_the_config(family: type[SmolVLMFamily]) -> None:
    settings = config(family)
    dimensions = read_dimensions("made-up", settings.to_dict())
    assert dimensions.tower == family(settings).tower
    assert dimensions.num_image_tokens == 17 * 4


def test_idefics3_is_the_same_without_videos() -> None:
    family = Idefics3Family(config(Idefics3Family))
    assert family.name == "idefics3"
    assert family.video_token_id is None
    assert family.facts()["video_template"] is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scale_factor": 3}, "scale_factor"),
        ({"vision": {"image_size": [16, 16]}}, "vision_config.image_size"),
        ({"vision": {"image_size": 100}, "scale_factor": 5}, "vision_config.image_size"),
    ],
)
def test_settings_that_cannot_be_carried_are_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        SmolVLMFamily(config(**changes))


def test_another_architecture_is_refused_by_name() -> None:
    content = {"model_type": "smolvlm", "architectures": ["SmolVLMModel"]}
    with pytest.raises(UnsupportedError, match="SmolVLMModel"):
        SmolVLMFamily.check(content)
    SmolVLMFamily.check({**content, "architectures": ["SmolVLMForConditionalGeneration"]})


def test_the_template_for_videos_writes_what_that_of_transformers_writes() -> None:
    from jinja2 import Environment

    theirs = transformers.models.smolvlm.processing_smolvlm.DEFAULT_CHAT_TEMPLATE
    ours = SmolVLMFamily(config()).facts()["video_template"]
    words = {"type": "text", "text": "What happens?"}
    conversation = [
        {"role": "system", "content": [words]},
        {"role": "user", "content": [{"type": "video"}, words]},
        {"role": "assistant", "content": [words]},
        {"role": "user", "content": [{"type": "image"}, words, {"type": "video"}]},
    ]
    for prompt in (False, True):
        texts = [
            Environment()
            .from_string(template)
            .render(messages=conversation, add_generation_prompt=prompt)
            for template in (theirs, ours)
        ]
        assert texts[0] == texts[1]
