"""Presets: every file is valid, and what is wrong is said by name."""

from __future__ import annotations

import pytest

from divprune.configs import list_presets, load_preset, preset_from_dict, suggest_preset
from divprune.runtime.errors import OptionError

GOOD = {
    "hub_id": "org/name",
    "family": "llava",
    "prompt": "{question}",
    "image_size": 336,
    "patch_size": 14,
    "num_image_tokens": 576,
    "config": {
        "model_type": "llava",
        "text_config": {"model_type": "llama"},
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 336,
            "patch_size": 14,
        },
    },
}


def test_the_presets_of_the_command_line_are_there() -> None:
    names = {"llava-1.5-7b", "llava-1.5-13b", "llava-interleave-0.5b", "llava-interleave-7b"}
    assert names <= set(list_presets())


@pytest.mark.parametrize("name", list_presets())
def test_every_preset_is_valid(name: str) -> None:
    assert load_preset(name).name == name


@pytest.mark.parametrize("name", [n for n in list_presets() if load_preset(n).family == "llava"])
def test_image_tokens_of_a_preset_are_its_patches(name: str) -> None:
    preset = load_preset(name)
    assert preset.num_image_tokens == (preset.image_size // preset.patch_size) ** 2


def test_unknown_preset_lists_the_known_ones_and_guesses() -> None:
    with pytest.raises(OptionError) as caught:
        load_preset("llava-1.5-7")
    message = str(caught.value)
    assert all(name in message for name in list_presets())
    assert "llava-1.5-7b if that was meant" in message


def test_preset_name_with_a_path_in_it_is_unknown() -> None:
    with pytest.raises(OptionError):
        load_preset("../models/llava-1.5-7b")


@pytest.mark.parametrize(
    "name, guess",
    [
        ("LLaVA-1.5-7b-hf", "llava-1.5-7b"),
        ("org/llava-1.5-13b", "llava-1.5-13b"),
        ("llava-interleave-0.5", "llava-interleave-0.5b"),
        ("resnet50", None),
    ],
)
def test_suggestion_is_the_nearest_name_or_none(name: str, guess: str | None) -> None:
    assert suggest_preset(name) == guess


@pytest.mark.parametrize(
    "change, field",
    [
        ({"hub_id": "no-slash"}, "hub_id"),
        ({"family": "resnet"}, "family"),
        ({"prompt": "no place for it"}, "prompt"),
        ({"image_size": 0}, "image_size"),
        ({"patch_size": "14"}, "patch_size"),
        ({"num_image_tokens": True}, "num_image_tokens"),
        ({"num_image_tokens": 577}, "config"),  # not those of the tower
        ({"typical_image_tokens": 300}, "config"),  # of a model with a fixed number
        ({"config": 1}, "config"),
        ({"config": {"model_type": "resnet"}}, "config"),
        ({"recommended_keep": 10}, "recommended_keep"),
        ({"recommended_keep": "much"}, "recommended_keep"),
        ({"licence": "mit"}, "licence"),
    ],
)
def test_wrong_or_unknown_field_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(OptionError, match=field):
        preset_from_dict("made-up", GOOD | change)


def test_missing_field_is_named() -> None:
    with pytest.raises(OptionError, match="hub_id"):
        preset_from_dict("made-up", {key: GOOD[key] for key in GOOD if key != "hub_id"})


def test_preset_that_is_not_a_mapping_is_refused() -> None:
    with pytest.raises(OptionError, match="not a mapping"):
        preset_from_dict("made-up", ["llava"])
