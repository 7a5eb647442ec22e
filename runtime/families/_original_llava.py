"""The config of LLaVA's original code, in the form that transformers gives it.

The original code keeps the decoder's settings at the top level of ``config.json``, with its own
beside them (``mm_*``), and names the tower instead of describing it. Here a tower's own config is
put in, so that everything behind knows one form only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divprune.runtime.directory.path_text import expand_user, is_there
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families._model_config import TOWER_DEFAULTS, read_count

__all__ = ["is_original", "tower_folder", "tower_name", "translate"]

# Architecture: the text model in transformers.
_TEXT_MODELS = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}
_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("attention_bias", "mlp_bias", "sliding_window", "use_sliding_window"),
    *("max_window_layers", "layer_types"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
_TOWER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)
# What changes the features and has no place in transformers' LLaVA, with the values that mean off.
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "mm_resampler_type": (None, "identity"),
    "s2": (None, False),
    "mm_newline_position": (None, "one_token"),
}
_ONEVISION = ("llava_onevision", "LlavaOnevision")
_LONGEST_NAME = 1000
_STRATEGIES = {"patch": "default", "cls_patch": "full"}


def is_original(content: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of the original code's."""
    return "text_config" not in content and _architecture(content) in _TEXT_MODELS


def tower_name(content: Mapping[str, Any]) -> str:
    """Directory or hub id of the tower.

    Raises:
        CheckpointError: if the config names none.
    """
    name = content.get("mm_vision_tower") or content.get("vision_tower")
    if not isinstance(name, str) or not 0 < len(name) < _LONGEST_NAME:
        raise CheckpointError(
            "config.json does not name the vision tower",
            expected="mm_vision_tower: a directory or a hub id",
            found=name,
            fix='write it there, for LLaVA-1.5: "mm_vision_tower": '
            '"openai/clip-vit-large-patch14-336"',
        )
    return name


def tower_folder(name: str, checkpoint: Path) -> Path | None:
    """The directory that a tower's name means, also one beside the checkpoint; None without."""
    folders = (expand_user(name), checkpoint / name)
    return next((each for each in folders if is_there(each / "config.json")), None)


def translate(
    content: Mapping[str, Any],
    tower: Mapping[str, Any],
    *,
    tower_layers: int | None = None,
    tower_has_head: bool = False,
) -> dict[str, Any]:
    """The content of the ``config.json`` that transformers would have saved.

    The image token, which the original code has none of, gets the first number without a row.

    Args:
        content: Of the original ``config.json``.
        tower: Content of the tower's own ``config.json``: CLIP or SigLIP, whole or the tower.
        tower_layers: Encoder layers that there are weights for; by default as ``tower`` says.
        tower_has_head: Whether there are weights for SigLIP's pooling head.

    Raises:
        UnsupportedError: naming the setting that transformers' LLaVA has not, or for another
            kind of tower.
    """
    for key, off in _REFUSED.items():
        if content.get(key) not in off:
            raise _unsupported(key, "left out", content[key])
    projector = content.get("mm_projector_type", "linear")
    if projector != "mlp2x_gelu":
        raise _unsupported("mm_projector_type", "mlp2x_gelu", projector)
    text: dict[str, Any] = {key: content[key] for key in _TEXT_KEYS if key in content}
    text["model_type"] = _TEXT_MODELS[_architecture(content)]
    vision = _vision(tower)
    chosen = _feature_layer(content, vision)
    vision["num_hidden_layers"] = tower_layers or vision["num_hidden_layers"]
    if vision["model_type"] == "siglip_vision_model":
        vision["vision_use_head"] = tower_has_head
    return {
        **_tiling(content),
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": chosen,
        "vision_feature_select_strategy": _strategy(content, vision),
        "projector_hidden_act": "gelu",
        "image_token_index": content.get("vocab_size"),
        "tie_word_embeddings": bool(content.get("tie_word_embeddings", False)),
        **{key: content[key] for key in ("quantization_config",) if key in content},
    }


def _architecture(content: Mapping[str, Any]) -> str:
    names = content.get("architectures")
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else ""


def _vision(tower: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(tower.get("model_type", "")).removesuffix("_vision_model") + "_vision_model"
    part = tower.get("vision_config", tower)
    if kind not in TOWER_DEFAULTS or not isinstance(part, Mapping):
        raise UnsupportedError(
            "the vision tower is of a kind that cannot be exported yet",
            expected="a config of a CLIP or SigLIP, whole or its vision part",
            found=f"model_type {tower.get('model_type')}",
        )
    return {
        **TOWER_DEFAULTS[kind],
        **{key: part[key] for key in _TOWER_KEYS if key in part},
        "model_type": kind,
    }


def _feature_layer(content: Mapping[str, Any], vision: Mapping[str, Any]) -> int:
    """Which of the layers' outputs is taken.

    Of a SigLIP the original code throws the last layer away and takes the last output that is
    left, whatever ``mm_vision_select_layer`` says. Counted from the start, that is right for a
    checkpoint with that layer and for one without.
    """
    if vision["model_type"] == "siglip_vision_model":
        return read_count(vision, "num_hidden_layers") - 1
    chosen = content.get("mm_vision_select_layer", -2)
    if type(chosen) is not int:
        raise _unsupported("mm_vision_select_layer", "an integer", chosen)
    return chosen


def _strategy(content: Mapping[str, Any], vision: Mapping[str, Any]) -> str:
    if vision["model_type"] == "siglip_vision_model":
        return "full"  # it has no class token to leave out
    chosen = str(content.get("mm_vision_select_feature", "patch"))
    if chosen not in _STRATEGIES:
        raise _unsupported("mm_vision_select_feature", " or ".join(_STRATEGIES), chosen)
    return _STRATEGIES[chosen]


def _tiling(content: Mapping[str, Any]) -> dict[str, Any]:
    """Family, and how pictures are cut: one crop, LLaVA-1.6's tiles or LLaVA-OneVision's."""
    aspect = content.get("image_aspect_ratio")
    merge = str(content.get("mm_patch_merge_type", "flat"))
    if aspect in (None, "square", "pad"):
        if "unpad" in merge:
            raise _unsupported(
                "mm_patch_merge_type", f"flat with image_aspect_ratio {aspect}", merge
            )
        return {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    anyres = re.fullmatch(r"anyres(_max_[1-9][0-9]*)?", str(aspect))
    if anyres is None:
        raise _unsupported("image_aspect_ratio", "square, pad, anyres or anyres_max_N", aspect)
    if merge != "spatial_unpad":
        raise _unsupported("mm_patch_merge_type", f"spatial_unpad with {aspect}", merge)
    kind, name = ("llava_next", "LlavaNext") if anyres[1] is None else _ONEVISION
    return {
        "model_type": kind,
        "architectures": [f"{name}ForConditionalGeneration"],
        "image_grid_pinpoints": content.get("image_grid_pinpoints"),
        "vision_aspect_ratio": aspect,
    }


def _unsupported(key: str, expected: str, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"{key} of the original LLaVA code has a value that cannot be exported",
        expected=expected,
        found=found,
    )
