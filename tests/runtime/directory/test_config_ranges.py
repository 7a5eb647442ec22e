from __future__ import annotations

from typing import Any

import pytest

from divprune.configs import list_presets, load_preset
from divprune.runtime.directory.config_ranges import check_config, values_of
from divprune.runtime.errors import CheckpointError


def config(**changes: Any) -> dict[str, Any]:
    """A small configuration; a key such as ``text_config__vocab_size`` lies in that part."""
    content: dict[str, Any] = {
        "model_type": "llava",
        "image_token_index": 470,
        "vision_feature_layer": -2,
        "text_config": {"model_type": "llama", "vocab_size": 480, "eos_token_id": 2},
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": 56,
            "patch_size": 8,
            "num_hidden_layers": 3,
        },
    }
    for key, value in changes.items():
        *parts, name = key.split("__")
        place = content
        for part in parts:
            place = place.setdefault(part, {})
        place[name] = value
    return content


@pytest.mark.parametrize("preset", list_presets())
def test_every_preset_is_in_range(preset: str) -> None:
    check_config(load_preset(preset).config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text_config": None},
        {"text_config__eos_token_id": [2, 7]},
        {"text_config__pad_token_id": -1},
        {"vision_feature_layer": [-3, 2]},
        {"text_config__rope_scaling": None},
        {"text_config__rope_scaling": {}},
        {"text_config__rope_scaling": {"type": "linear", "factor": 4}},
        {
            "text_config__rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.5,
                "attention_factor": None,
            }
        },
        {"text_config__rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3]}},
        {"downsample_ratio": 0.5},
        {"scale_factor": 4},
        {"vision_aspect_ratio": "anyres_max_9"},
        {"image_grid_pinpoints": [[56, 112], [112, 56]]},
        {
            "vision_config__model_type": "internvl_vision",
            "vision_config__image_size": [56, 56],
            "vision_config__patch_size": [8, 8],
        },
    ],
)
def test_what_models_have_is_accepted(changes: dict[str, Any]) -> None:
    check_config(config(**changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text_config", "llama"),
        ("text_config__vocab_size", 0),
        ("text_config__vocab_size", 480.0),
        ("text_config__hidden_size", True),
        ("text_config__num_hidden_layers", None),
        ("text_config__num_hidden_layers", 10**12),
        ("text_config__rms_norm_eps", float("nan")),
        ("text_config__rope_theta", -1.0),
        ("text_config__rope_parameters__rope_theta", 0),
        ("text_config__rope_parameters__rope_theta", "10000"),
        ("text_config__rope_parameters__full_attention__rope_theta", -1.0),
        ("text_config__rope_scaling", "linear"),
        ("text_config__rope_scaling", [4.0]),
        ("text_config__rope_scaling__mrope_section", [10**12, 3, 3]),
        ("text_config__rope_scaling__mrope_section", [2, 3, "3"]),
        ("text_config__rope_scaling__mrope_section", [2, 3]),
        ("text_config__rope_scaling__mrope_section", [2, 3, -3]),
        ("text_config__rope_scaling__mrope_section", 8),
        ("text_config__rope_scaling__factor", "4"),
        ("text_config__rope_scaling__factor", 0),
        ("text_config__rope_scaling__factor", -2.0),
        ("text_config__rope_scaling__factor", float("inf")),
        ("text_config__rope_scaling__factor", True),
        ("text_config__rope_scaling__low_freq_factor", float("nan")),
        ("text_config__rope_scaling__original_max_position_embeddings", -64),
        ("text_config__eos_token_id", 480),
        ("text_config__eos_token_id", [2, "</s>"]),
        ("text_config__model_type", 7),
        ("vision_config__image_size", 4),
        ("vision_config__image_size", 1 << 20),
        ("vision_config__image_size", [56, 56]),
        ("vision_config__patch_size", 0),
        ("image_token_index", -5),
        ("vision_config__model_type", ["clip_vision_model"]),
        ("downsample_ratio", "0.5"),
        ("downsample_ratio", 0),
        ("downsample_ratio", 1e-9),
        ("downsample_ratio", float("nan")),
        ("scale_factor", None),
        ("scale_factor", 2.0),
        ("scale_factor", 0),
        ("scale_factor", 10**12),
        ("vision_aspect_ratio", "anyres_max_0"),
        ("vision_aspect_ratio", "anyres_max_999999999"),
        ("image_grid_pinpoints", []),
        ("image_grid_pinpoints", 7),
        ("image_grid_pinpoints", [7]),
        ("image_grid_pinpoints", [[16]]),
        ("image_grid_pinpoints", [[16, 32], [16, "32"]]),
        ("image_grid_pinpoints", [[16, 10**12]]),
        ("image_grid_pinpoints", [[16, 32]] * 10_000),
        ("vision_feature_layer", 9),
        ("vision_feature_layer", [-1, "last"]),
    ],
)
def test_what_no_model_has_is_refused_by_key(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key.replace("__", r"\.")):
        check_config(config(**{key: value}))


@pytest.mark.parametrize("size", [[], [56], [56, 56, 56], [56, None], ["56", 56]])
@pytest.mark.parametrize("key", ["image_size", "patch_size"])
def test_a_size_spelled_as_a_list_is_a_pair(key: str, size: list[Any]) -> None:
    tower = {"vision_config__model_type": "internvl_vision"}
    with pytest.raises(CheckpointError, match=key):
        check_config(config(**tower, **{f"vision_config__{key}": size}))


@pytest.mark.parametrize("error", [KeyError("a"), TypeError(), ValueError("b"), OverflowError()])
def test_what_trips_over_a_value_names_its_file(error: Exception) -> None:
    message = rf"(?s)config\.json.*{type(error).__name__}"
    with pytest.raises(CheckpointError, match=message), values_of("config.json"):
        raise error


def test_an_error_that_says_more_passes() -> None:
    with pytest.raises(CheckpointError, match="a better message"), values_of("config.json"):
        raise CheckpointError("a better message")
