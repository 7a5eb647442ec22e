"""The shape of a Qwen-VL model from its ``config.json``.

Configs leave out what is the default of their kind; the defaults here are those of transformers 5.
The hub's Qwen2-VL and Qwen2.5-VL have what is the text model's at the top level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divprune.runtime.directory.manifest_records import TowerInfo
from divprune.runtime.errors import CheckpointError
from divprune.runtime.families._model_config import read_count, read_packed, read_text
from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["read_qwen_model"]

_QWEN2_TEXT: Mapping[str, Any] = {
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": None,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
_TEXT: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": _QWEN2_TEXT,
    "qwen2_5_vl": _QWEN2_TEXT,
    "qwen3_vl": {
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
    },
}
_TOWER = {"depth": 32, "num_heads": 16, "in_channels": 3, "patch_size": 14}
_TOWERS: Mapping[str, Mapping[str, Any]] = {
    # hidden_size of Qwen2-VL's tower is the width of what comes out of it.
    "qwen2_vl": {**_TOWER, "embed_dim": 1280, "mlp_ratio": 4},
    "qwen2_5_vl": {**_TOWER, "hidden_size": 3584, "intermediate_size": 3420},
    "qwen3_vl": {
        **_TOWER,
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "patch_size": 16,
    },
}


def read_qwen_model(
    name: str, content: Mapping[str, Any], kind: str, num_image_tokens: int
) -> ModelDimensions:
    """The shape of a model.

    Args:
        name: What the user calls it.
        content: ``config.json``; a preset has the part of it that matters.
        kind: ``model_type`` of it.
        num_image_tokens: Visual tokens of the largest picture.

    Raises:
        CheckpointError: for a number that is missing or none.
    """
    text, vision = content.get("text_config") or content, content.get("vision_config")
    if not isinstance(text, Mapping) or not isinstance(vision, Mapping):
        raise CheckpointError(
            "config.json has no vision_config", expected="an object", found=vision
        )
    tower = {**_TOWERS[kind], **vision}
    if kind == "qwen2_vl":
        width = read_count(tower, "embed_dim")
        inner = width * read_count(tower, "mlp_ratio")
    else:
        width, inner = read_count(tower, "hidden_size"), read_count(tower, "intermediate_size")
    info = TowerInfo(
        hidden_size=width,
        intermediate_size=inner,
        num_layers=read_count(tower, "depth"),
        num_heads=read_count(tower, "num_heads"),
        num_positions=4 * num_image_tokens,
        patch_size=read_count(tower, "patch_size"),
        num_channels=read_count(tower, "in_channels"),
        feature_size=4 * width,
    )
    decoder = read_text({**_TEXT[kind], **text})
    cell = 2 * info.patch_size
    return ModelDimensions(
        name,
        info,
        decoder,
        num_image_tokens,
        read_packed(content),
        typical_image_tokens=round(640 / cell) * round(480 / cell),
    )
