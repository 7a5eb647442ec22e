"""Shapes of random checkpoints: every preset, and presets with other sizes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from divprune.configs import list_presets, load_preset
from divprune.runtime.errors import OptionError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["SHAPES", "model_config", "shape_config", "shape_names"]

_TINYLLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
SHAPES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llava-tiny": (
        "llava-1.5-7b",
        {
            "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3}
            | {"num_attention_heads": 4, "image_size": 56, "patch_size": 8},
            "text_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3}
            | {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 480}
            | {"max_position_embeddings": 2048},
            "image_token_index": 470,
        },
    ),
    "llava-0.2b": (
        "llava-1.5-7b",
        {
            "vision_config": {"hidden_size": 768, "intermediate_size": 3072, "image_size": 224}
            | {"num_hidden_layers": 12, "num_attention_heads": 12},
            "text_config": {"hidden_size": 1024, "intermediate_size": 2816, "vocab_size": 32064}
            | {"num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4}
            | {"max_position_embeddings": 2048},
        },
    ),
    "llava-0.5b": (  # its vocabulary is smaller, and its output layer no embedding table
        "llava-interleave-0.5b",
        {
            "text_config": {"vocab_size": 32064, "max_position_embeddings": 4096}
            | {"bos_token_id": 0, "eos_token_id": 2},
            "image_token_index": 32000,
            "tie_word_embeddings": False,
        },
    ),
    "llava-1.1b": ("llava-1.5-7b", {"text_config": _TINYLLAMA}),
    "llava-1.6-1.1b": (
        "llava-1.6-vicuna-7b",
        {"text_config": {**_TINYLLAMA, "max_position_embeddings": 4096}},
    ),
    # A third of Qwen2.5-VL 3B: half its tower, and a decoder that works as much as 1.1b above.
    "qwen2.5-vl-1.3b": (
        "qwen2.5-vl-3b",
        {
            "vision_config": {"depth": 16, "fullatt_block_indexes": [3, 7, 11, 15]},
            "text_config": {"intermediate_size": 5632, "num_hidden_layers": 22}
            | {"vocab_size": 32064, "bos_token_id": 32000, "eos_token_id": 32002},
            "vision_start_token_id": 32003,
            "vision_end_token_id": 32004,
            "image_token_id": 32005,
            "video_token_id": 32006,
        },
    ),
}
"""Names, and the preset and what is different of its config.json."""


def shape_names() -> tuple[str, ...]:
    """What ``shape_config`` takes, sorted."""
    return tuple(sorted({*list_presets(), *SHAPES}))


def shape_config(name: str) -> PreTrainedConfig:
    """The transformers config of a preset or of one of ``SHAPES``.

    Raises:
        OptionError: for another name; it lists those that there are.
    """
    if name not in shape_names():
        raise OptionError(
            f"there is no preset or shape {name}",
            expected="one of " + ", ".join(shape_names()),
            found=name,
        )
    preset, changes = SHAPES.get(name, (name, {}))
    return model_config(_merged(load_preset(preset).config, changes))


def model_config(content: dict[str, Any]) -> PreTrainedConfig:
    """The transformers config of what a config.json says, with what follows from it."""
    from transformers import AutoConfig

    content = copy.deepcopy(content)
    text, vision = content["text_config"], content["vision_config"]
    # transformers ties the output layer by the text model's own flag in some families.
    text.setdefault("tie_word_embeddings", content.get("tie_word_embeddings", False))
    if content["model_type"] in ("llava", "llava_next", "llava_next_video"):
        content["image_seq_length"] = (vision["image_size"] // vision["patch_size"]) ** 2
    config: PreTrainedConfig = AutoConfig.for_model(**content)
    return config


def _merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with ``changes``, part by part."""
    parts = {
        key: _merged(content[key], value)
        for key, value in changes.items()
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping)
    }
    return {**content, **changes, **parts}
