"""Small LLaVA-1.6, LLaVA-NeXT-Video and LLaVA-OneVision checkpoints with random weights.

Towers of 4 x 4 and 5 x 5 patches, the grids of the real models in miniature, and a newline that
is large enough to show in the answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints import lively_tensors
from divprune.export.checkpoint.random import Layout, write_checkpoint
from tests.runtime.families.anyres_cases import NEXT_GRIDS, ONEVISION_GRIDS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["ANYRES_CHECKPOINTS", "AnyresSpec", "anyres_config", "write_anyres_checkpoint"]

_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
_TOWER |= {"num_attention_heads": 2, "patch_size": 4}
_CLIP = {**_TOWER, "model_type": "clip_vision_model", "image_size": 16}
_SIGLIP = {**_TOWER, "model_type": "siglip_vision_model", "image_size": 20}
_SIGLIP |= {"vision_use_head": False}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "vocab_size": 480,
}
_QWEN_IDS = {"bos_token_id": 0, "eos_token_id": 2}
_NEXT = {"vision_config": _CLIP, "image_grid_pinpoints": NEXT_GRIDS, "image_token_index": 470}
_NEXT_VIDEO = {**_NEXT, "image_token_index": 471, "video_token_index": 470}
_ONEVISION = {
    "vision_config": _SIGLIP,
    "image_grid_pinpoints": ONEVISION_GRIDS,
    "vision_aspect_ratio": "anyres_max_2",
    "image_token_index": 470,
    "video_token_index": 471,
}
_LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}


@dataclass(frozen=True)
class AnyresSpec:
    """One small configuration.

    Attributes:
        config: Name of transformers' class of the config.
        options: What it is made with, without its text part.
        text: The text part beyond what all have in common.
        layout: Key layout and spelling of the config.
        tied: Whether the output layer is the embedding table.
        shard_size: Largest shard in bytes.
        seed: Of the weights.
    """

    config: str
    options: Mapping[str, Any]
    text: Mapping[str, Any]
    layout: Layout = "v5"
    tied: bool = False
    shard_size: int = 10**9
    seed: int = 0


ANYRES_CHECKPOINTS: dict[str, AnyresSpec] = {
    "next-llama-hub": AnyresSpec(
        "LlavaNextConfig", _NEXT, {"model_type": "llama"}, layout="hub", shard_size=200_000
    ),
    "next-mistral-v5": AnyresSpec(
        "LlavaNextConfig",
        _NEXT,
        {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": None, "head_dim": 16},
        seed=1,
    ),
    "next-video-llama-hub": AnyresSpec(
        "LlavaNextVideoConfig",
        _NEXT_VIDEO,
        {"model_type": "llama", "rope_parameters": _LINEAR},
        layout="hub",
        seed=2,
    ),
    "next-video-llama-v5": AnyresSpec(
        "LlavaNextVideoConfig",
        _NEXT_VIDEO,
        {"model_type": "llama", "num_key_value_heads": 2, "rope_parameters": _LINEAR},
        seed=3,
    ),
    "onevision-qwen2-hub": AnyresSpec(
        "LlavaOnevisionConfig",
        _ONEVISION,
        {"model_type": "qwen2", "num_key_value_heads": 2, **_QWEN_IDS},
        layout="hub",
        seed=4,
    ),
    "onevision-qwen2-v5-tied": AnyresSpec(
        "LlavaOnevisionConfig",
        _ONEVISION,
        {"model_type": "qwen2", "num_key_value_heads": 2, **_QWEN_IDS},
        tied=True,
        seed=5,
    ),
}


def anyres_config(spec: AnyresSpec) -> PreTrainedConfig:
    """The transformers config of ``spec``."""
    import transformers

    text = {**_TEXT, **spec.text, "tie_word_embeddings": spec.tied}
    config: PreTrainedConfig = getattr(transformers, spec.config)(
        text_config=text, tie_word_embeddings=spec.tied, **spec.options
    )
    return config


def write_anyres_checkpoint(path: Path, name: str) -> Path:
    """Write the checkpoint of ``ANYRES_CHECKPOINTS[name]`` (float32) to ``path``."""
    spec = ANYRES_CHECKPOINTS[name]
    config = anyres_config(spec)
    return write_checkpoint(
        path,
        config,
        lively_tensors(config, spec.seed),
        layout=spec.layout,
        dtype="fp32",
        shard_size=spec.shard_size,
    )
