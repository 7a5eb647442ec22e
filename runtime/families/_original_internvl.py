"""The config of InternVL's original code, in the form that transformers gives it.

The original code calls the decoder's part ``llm_config`` and has names of its own for the
settings of the tower. How many tiles a picture is cut into, which transformers keeps with the
image processor, is in ``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families._model_config import read_count

__all__ = ["is_original", "tile_range", "translate"]

# Architecture: the text model in transformers.
_TEXT_MODELS = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_TEXT_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "attention_bias"),
    *("sliding_window", "use_sliding_window", "max_window_layers"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config"),
)
# What the original code takes where the tower's part does not say it: its largest one.
_TOWER_DEFAULTS: Mapping[str, Any] = {
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 48,
    "num_attention_heads": 25,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "norm_type": "rms_norm",
    "qkv_bias": False,
    "qk_normalization": True,
}
_RENAMED = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
_NORMS = ("layer_norm", "rms_norm")
_QK_NORM_EPS = 1e-6  # transformers has no setting for it
# What changes the features, or where they stand, and has no place in transformers' InternVL: the
# original code's default, and the values that can be carried out.
_REFUSED: Mapping[str, tuple[object, tuple[object, ...]]] = {
    "select_layer": (-1, (-1,)),
    "ps_version": ("v1", ("v2",)),
    "pad2square": (False, (False, None)),
    "compress_seq": (False, (False, None)),
    "rope_pos_id_version": ("default", ("default", None)),
}
_MOST_TILES = 1 << 10  # far beyond any model, and still few enough to try all grids of
_LORA = ("use_llm_lora", "use_backbone_lora")


def is_original(content: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of the original code's."""
    return content.get("model_type") == "internvl_chat"


def translate(content: Mapping[str, Any], *, image_token_id: int | None = None) -> dict[str, Any]:
    """The content of the ``config.json`` that transformers would have saved.

    Args:
        content: Of the original ``config.json``.
        image_token_id: Number of ``<IMG_CONTEXT>``, which the tokenizer knows.

    Raises:
        UnsupportedError: naming the setting that transformers' InternVL has not, or for another
            decoder or tower.
        CheckpointError: for a part or a number that is missing or none.
    """
    for key in _LORA:
        if content.get(key):
            raise _lora(key, content[key])
    for key, (default, able) in _REFUSED.items():
        _require(key, content.get(key, default), able)
    _, most_tiles = tile_range(content)
    text, vision = _text(content), _vision(content)
    ratio = content.get("downsample_ratio", 0.5)
    if type(ratio) not in (int, float) or not 0 < ratio <= 1:
        raise CheckpointError(
            "config.json: downsample_ratio is wrong", expected="1 / n, such as 0.5", found=ratio
        )
    side = read_count(vision, "image_size") // read_count(vision, "patch_size")
    stated = {key: content[key] for key in ("quantization_config",) if key in content}
    if image_token_id is not None:
        stated["image_token_id"] = image_token_id
    return {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "downsample_ratio": ratio,
        "image_seq_length": int(side * ratio) ** 2,
        "projector_hidden_act": "gelu",
        "max_dynamic_patch": most_tiles,
        "tie_word_embeddings": text["tie_word_embeddings"],
        **stated,
    }


def tile_range(content: Mapping[str, Any]) -> tuple[int, int]:
    """Fewest and most tiles that a picture is cut into, the whole picture behind them not counted.

    Raises:
        UnsupportedError: for tiles without the whole picture behind them.
        CheckpointError: for numbers that are none.
    """
    if not content.get("dynamic_image_size", False):
        return 1, 1
    counts = {"min_dynamic_patch": 1, "max_dynamic_patch": 6, **content}
    fewest, most = (read_count(counts, f"{end}_dynamic_patch") for end in ("min", "max"))
    if not fewest <= most <= _MOST_TILES:
        raise CheckpointError(
            "config.json: min_dynamic_patch and max_dynamic_patch do not fit together",
            expected=f"1 <= min_dynamic_patch <= max_dynamic_patch <= {_MOST_TILES}",
            found=f"{fewest} and {most}",
        )
    if most > 1:
        _require("use_thumbnail", content.get("use_thumbnail", False), (True,))
    return fewest, most


def _text(content: Mapping[str, Any]) -> dict[str, Any]:
    given = _part(content, "llm_config")
    names = given.get("architectures")
    name = names[0] if isinstance(names, list) and names else given.get("model_type")
    kind = next((kind for key, kind in _TEXT_MODELS.items() if name in (key, kind)), None)
    if kind is None:
        raise UnsupportedError(
            "the text model of this InternVL cannot be exported",
            expected="llm_config of " + " or ".join(_TEXT_MODELS),
            found=name,
        )
    text = {key: given[key] for key in _TEXT_KEYS if key in given}
    tied = bool(given.get("tie_word_embeddings", False))
    return {**text, "model_type": kind, "tie_word_embeddings": tied}


def _vision(content: Mapping[str, Any]) -> dict[str, Any]:
    given = _part(content, "vision_config")
    _require("vision_config.model_type", given.get("model_type"), ("intern_vit_6b",))
    vision = {key: given.get(key, default) for key, default in _TOWER_DEFAULTS.items()}
    _require("vision_config.norm_type", vision["norm_type"], _NORMS)
    if vision["qk_normalization"]:
        # Of the norms of queries and keys as well, which transformers does not let be set.
        _require("vision_config.layer_norm_eps", vision["layer_norm_eps"], (_QK_NORM_EPS,))
    size = content.get("force_image_size") or vision["image_size"]
    _require("force_image_size", size, (vision["image_size"],))
    renamed = {_RENAMED.get(key, key): value for key, value in vision.items()}
    return {**renamed, "model_type": "internvl_vision"}


def _part(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = content.get(name)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"config.json has no {name}", expected="an object", found=part)
    return part


def _require(key: str, found: object, able: tuple[object, ...]) -> None:
    if not any(found == value for value in able):
        raise UnsupportedError(
            f"{key} of the original InternVL code has a value that cannot be exported",
            expected=" or ".join(map(str, able)),
            found=found,
        )


def _lora(key: str, rank: object) -> UnsupportedError:
    return UnsupportedError(
        "the checkpoint has a LoRA that is not merged into its weights",
        expected=f"{key} 0",
        found=f"{key} {rank}",
        fix="merge it with the original InternVL code, in its folder internvl_chat: "
        "python tools/merge_lora.py CHECKPOINT MERGED",
    )
