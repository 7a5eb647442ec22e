"""The shape of a model from its ``config.json``, as transformers reads it.

Configs leave out what is the default of their kind, and the kinds have different defaults: those
of transformers 5, which tests compare with transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divprune.runtime.directory.dimensions import ModelDimensions, TextDimensions
from divprune.runtime.directory.manifest import TowerInfo
from divprune.runtime.directory.quant_scheme import QuantScheme
from divprune.runtime.errors import CheckpointError, UnsupportedError

__all__ = ["read_dimensions"]

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
_TEXT_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
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
_TOWER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "clip_vision_model": {**_TOWER, "patch_size": 32},
    "siglip_vision_model": {**_TOWER, "patch_size": 16},
}


def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
    """The shape of the model that a ``config.json`` describes.

    Args:
        name: What the user calls the model.
        content: The file's content; a preset has the part of it that matters.

    Raises:
        UnsupportedError: for another architecture, text model or tower.
        CheckpointError: for a number that is missing or none.
    """
    if content.get("model_type") != "llava":
        raise UnsupportedError(
            f"memory of {name} cannot be planned yet",
            expected="a LLaVA as transformers saves it (model_type llava)",
            found=f"model_type {content.get('model_type')}",
        )
    text = _with_defaults(content, "text_config", _TEXT_DEFAULTS, "llama")
    vision = _with_defaults(content, "vision_config", _TOWER_DEFAULTS, "clip_vision_model")
    tower, num_image_tokens = _tower(content, vision)
    return ModelDimensions(name, tower, _text(text), num_image_tokens, _packed(content))


def _with_defaults(
    content: Mapping[str, Any],
    part: str,
    kinds: Mapping[str, Mapping[str, Any]],
    default_kind: str,
) -> dict[str, Any]:
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


def _text(config: dict[str, Any]) -> TextDimensions:
    heads = _count(config, "num_attention_heads")
    width = _count(config, "hidden_size")
    config["num_key_value_heads"] = config["num_key_value_heads"] or heads
    config["head_dim"] = config["head_dim"] or width // heads
    return TextDimensions(
        num_layers=_count(config, "num_hidden_layers"),
        hidden_size=width,
        intermediate_size=_count(config, "intermediate_size"),
        num_heads=heads,
        num_kv_heads=_count(config, "num_key_value_heads"),
        head_dim=_count(config, "head_dim"),
        vocab_size=_count(config, "vocab_size"),
        max_position_embeddings=_count(config, "max_position_embeddings"),
    )


def _tower(content: Mapping[str, Any], config: dict[str, Any]) -> tuple[TowerInfo, int]:
    """The tower up to the last layer that is used, and its tokens without those cropped."""
    layers, width = _count(config, "num_hidden_layers"), _count(config, "hidden_size")
    chosen = content.get("vision_feature_layer", -2)
    indices = [chosen] if isinstance(chosen, int) else list(chosen)
    patches = (_count(config, "image_size") // _count(config, "patch_size")) ** 2
    is_clip = config.get("model_type", "clip_vision_model") == "clip_vision_model"
    positions = patches + is_clip
    cropped = content.get("vision_feature_select_strategy", "default") == "default"
    tower = TowerInfo(
        hidden_size=width,
        intermediate_size=_count(config, "intermediate_size"),
        # Counted from the end of the layers' inputs and the last one's output.
        num_layers=max(1, *(index % (layers + 1) for index in indices)),
        num_heads=_count(config, "num_attention_heads"),
        num_positions=positions,
        patch_size=_count(config, "patch_size"),
        num_channels=_count(config, "num_channels"),
        feature_size=width * len(indices),
    )
    return tower, positions - cropped


def _packed(content: Mapping[str, Any]) -> QuantScheme | None:
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


def _count(config: Mapping[str, Any], field: str) -> int:
    value = config.get(field)
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json: {field} is wrong", expected="an integer above 0", found=value
        )
    return value
