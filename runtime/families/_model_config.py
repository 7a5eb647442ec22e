"""The shape of a model from its ``config.json``, as transformers reads it.

Configs leave out what is the default of their kind, and the kinds have different defaults: those
of transformers 5, which tests compare with transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divprune.runtime.directory.manifest import TowerInfo
from divprune.runtime.directory.quant_scheme import QuantScheme
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families.dimensions import ModelDimensions, TextDimensions

__all__ = [
    "TEXT_DEFAULTS",
    "TOWER_DEFAULTS",
    "read_clip_model",
    "read_clip_tower",
    "read_count",
    "read_packed",
    "read_text",
    "with_defaults",
]

_LLAMA: Mapping[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
_QWEN: Mapping[str, Any] = {
    **_LLAMA,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
}
TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": _LLAMA,
    "mistral": {
        **_LLAMA,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}
_TOWER: Mapping[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
TOWER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": {**_TOWER, "patch_size": 32},
    "siglip_vision_model": {**_TOWER, "patch_size": 16},
}


def read_clip_model(name: str, content: Mapping[str, Any]) -> ModelDimensions:
    """The shape of a model with a CLIP or SigLIP tower, a two-layer projector and one crop.

    Args:
        name: What the user calls the model.
        content: ``config.json``; a preset has the part of it that matters.

    Raises:
        UnsupportedError: for another text model or tower.
        CheckpointError: for a number that is missing or none.
    """
    text = with_defaults(content, "text_config", TEXT_DEFAULTS, "llama")
    vision = with_defaults(content, "vision_config", TOWER_DEFAULTS, "clip_vision_model")
    tower, num_image_tokens = read_clip_tower(content, vision)
    return ModelDimensions(name, tower, read_text(text), num_image_tokens, read_packed(content))


def with_defaults(
    content: Mapping[str, Any],
    part: str,
    kinds: Mapping[str, Mapping[str, Any]],
    default_kind: str,
) -> dict[str, Any]:
    """A part of config.json with what its kind leaves out."""
    given = content.get(part)
    if not isinstance(given, dict):
        raise CheckpointError(f"config.json has no {part}", expected="an object", found=given)
    kind = given.get("model_type", default_kind)
    if kind not in kinds:
        raise UnsupportedError(
            f"{part} is of a kind that cannot be exported yet",
            expected="one of " + ", ".join(kinds),
            found=kind,
        )
    return {**kinds[kind], **given}


def read_text(config: dict[str, Any]) -> TextDimensions:
    """The decoder of a text config."""
    heads = read_count(config, "num_attention_heads")
    width = read_count(config, "hidden_size")
    config["num_key_value_heads"] = config["num_key_value_heads"] or heads
    config["head_dim"] = config["head_dim"] or width // heads
    return TextDimensions(
        num_layers=read_count(config, "num_hidden_layers"),
        hidden_size=width,
        intermediate_size=read_count(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=read_count(config, "num_key_value_heads"),
        head_dim=read_count(config, "head_dim"),
        vocab_size=read_count(config, "vocab_size"),
        max_position_embeddings=read_count(config, "max_position_embeddings"),
    )


def read_clip_tower(content: Mapping[str, Any], config: dict[str, Any]) -> tuple[TowerInfo, int]:
    """The tower up to the last layer that is used, and its tokens without those cropped."""
    layers, width = read_count(config, "num_hidden_layers"), read_count(config, "hidden_size")
    chosen = content.get("vision_feature_layer", -2)
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    patches = (read_count(config, "image_size") // read_count(config, "patch_size")) ** 2
    is_clip = config.get("model_type", "clip_vision_model") == "clip_vision_model"
    positions = patches + is_clip
    cropped = content.get("vision_feature_select_strategy", "default") == "default"
    tower = TowerInfo(
        hidden_size=width,
        intermediate_size=read_count(config, "intermediate_size"),
        # Counted from the end of the layers' inputs and the last one's output.
        num_layers=max(1, *(index % (layers + 1) for index in indices)),
        num_heads=read_count(config, "num_attention_heads"),
        num_positions=positions,
        patch_size=read_count(config, "patch_size"),
        num_channels=read_count(config, "num_channels"),
        feature_size=width * len(indices),
    )
    return tower, positions - cropped


def read_packed(content: Mapping[str, Any]) -> QuantScheme | None:
    """How an AWQ or GPTQ checkpoint is quantised; None for floating point."""
    text = content.get("text_config")
    of_text = text.get("quantization_config") if isinstance(text, dict) else None
    stated = content.get("quantization_config") or of_text
    if not isinstance(stated, dict):
        return None
    method, bits, block = (stated.get(key) for key in ("quant_method", "bits", "group_size"))
    if method not in ("awq", "gptq") or type(bits) is not int or type(block) is not int:
        raise UnsupportedError(
            "a checkpoint quantised like this cannot be exported",
            expected="quant_method awq or gptq, with bits and group_size",
            found=f"quant_method {method}, bits {bits}, group_size {block}",
        )
    symmetric = bool(stated.get("sym", not stated.get("zero_point", True)))
    return QuantScheme(bits, block, symmetric)


def read_count(config: Mapping[str, Any], field: str) -> int:
    """A number above 0 of a config."""
    value = config.get(field)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json: {field} is wrong", expected="an integer above 0", found=value
        )
    return value
