"""The LLaVA family: facts from its config, and its image features as transformers makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from checkpoints import TINY_CHECKPOINTS, tiny_config
from divprune.export.checkpoint.checkpoint import Checkpoint, expected_tensors
from divprune.export.families import family_class
from divprune.export.families.llava import LlavaFamily
from divprune.runtime.errors import UnsupportedError

canonical_name = LlavaFamily.canonical_name
VARIANTS = ["clip-llama-v5-layers-biases", "siglip-qwen2-v4-tied", "siglip-llama-v4-linear-rope"]


def test_facts_are_those_of_the_config() -> None:
    family = LlavaFamily(tiny_config(TINY_CHECKPOINTS["clip-llama-v5-llama3-rope"]))
    assert family.name == "llava"
    assert family.vision_model == "clip_vision_model"
    assert family.facts()["image_size"] == [112, 112]
    assert family.image_token_id == 470
    assert family.text_config.model_type == "llama"


def test_height_and_width_may_differ() -> None:
    config = tiny_config(TINY_CHECKPOINTS["clip-llama-hub"])
    config.vision_config.image_size = [56, 112]
    assert LlavaFamily(config).facts()["image_size"] == [56, 112]


@pytest.mark.parametrize("name", ["siglip-qwen2-v4-tied", "clip-llama-hub"])
def test_the_config_of_the_whole_model_decides_about_a_tied_head(name: str) -> None:
    config = tiny_config(TINY_CHECKPOINTS[name])
    config.text_config.tie_word_embeddings = not config.tie_word_embeddings
    assert LlavaFamily(config).tied_head == ("tied" in name)


def test_another_tower_is_refused_by_name() -> None:
    config = transformers.LlavaConfig(vision_config=transformers.PixtralVisionConfig())
    with pytest.raises(UnsupportedError, match=r"(?s)clip_vision_model.*found: +pixtral"):
        LlavaFamily(config)


def test_another_family_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)model type of .*llava.*found: +PixtralModel"):
        family_class({"model_type": "pixtral", "architectures": ["PixtralModel"]})


@pytest.mark.parametrize("name", TINY_CHECKPOINTS)
def test_the_module_holds_no_values_and_only_tensors_of_the_checkpoint(name: str) -> None:
    config = tiny_config(TINY_CHECKPOINTS[name])
    module = LlavaFamily(config).vision_module()
    parameters = dict(module.named_parameters())
    assert all(parameter.is_meta for parameter in parameters.values())
    assert not module.training
    expected = expected_tensors(config)
    shapes = {canonical_name(key): tuple(value.shape) for key, value in parameters.items()}
    assert shapes == {
        key: shape
        for key, shape in expected.items()
        if key.startswith(("vision_tower.", "multi_modal_projector."))
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_features_are_those_of_transformers(checkpoint: Callable[[str], Path], name: str) -> None:
    path = checkpoint(name)
    source = Checkpoint.open(path)
    module = LlavaFamily(source.config).vision_module()
    tensors = {key: source.read(canonical_name(key)) for key, _ in module.named_parameters()}
    module.load_state_dict(tensors, assign=True, strict=False)
    for key, buffer in module.named_buffers():  # position_ids, the one that is not stored
        owner = module.get_submodule(key.rpartition(".")[0])
        owner.position_ids = torch.arange(buffer.shape[-1])[None]
    model = transformers.LlavaForConditionalGeneration.from_pretrained(path)

    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output[0]
        torch.testing.assert_close(module(pixels), expected)
    assert expected.shape == (TINY_CHECKPOINTS[name].num_image_tokens, 64)
