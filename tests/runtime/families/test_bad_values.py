"""A value that no model has, anywhere in config.json: planned, or refused by name."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from divprune.configs import list_presets, load_preset
from divprune.runtime.errors import DivPruneError
from divprune.runtime.families import family_names, read_dimensions

VALUES: tuple[Any, ...] = (
    *(None, "x", "", True, -1, 0, 1, 1.5, 10**12, float("nan"), [], [1], [0, 10**12], {}),
    *([[]], [None], {"a": 1}),
)


QWEN2_VL: dict[str, Any] = {
    "model_type": "qwen2_vl",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "image_token_id": 151655,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}


@cache
def configs() -> dict[str, dict[str, Any]]:
    """A config.json of every family."""
    found: dict[str, dict[str, Any]] = {"qwen2_vl": QWEN2_VL}
    for name in list_presets():
        config = dict(load_preset(name).config)
        found.setdefault(config["model_type"], config)
    return {"idefics3": {**found["smolvlm"], "model_type": "idefics3"}, **found}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of a config, and of lists their first items."""
    keys = value if isinstance(value, dict) else range(min(2, len(value)))
    for key in keys:
        yield (*path, key)
        if isinstance(value[key], (dict, list)):
            yield from places(value[key], (*path, key))


def changed(config: dict[str, Any], path: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    """The config without that key, and with each of the values there."""
    for number in range(len(VALUES) + 1):
        content = copy.deepcopy(config)
        part: Any = content
        for key in path[:-1]:
            part = part[key]
        if number < len(VALUES):
            part[path[-1]] = VALUES[number]
        else:
            del part[path[-1]]
        yield content


@pytest.mark.parametrize("family", family_names())
def test_a_value_is_read_or_refused_whatever_it_is(family: str) -> None:
    config = configs()[family]
    read_dimensions("a model", config)
    paths = list(places(config))
    assert len(paths) > 10
    outcomes = [outcome(content) for path in paths for content in changed(config, path)]
    assert {"read", "refused"} == set(outcomes)


def outcome(content: dict[str, Any]) -> str:
    try:
        dimensions = read_dimensions("a model", content)
    except DivPruneError:
        return "refused"
    assert dimensions.num_image_tokens >= 1
    return "read"
