"""Small Qwen2-VL, Qwen2.5-VL and Qwen3-VL checkpoints with random weights.

Cells of 8 pixels, windows of 2 x 2 cells, decoders with a layer more than there are planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints import lively_tensors
from divprune.export.checkpoint.random import Layout, write_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["QWEN_CHECKPOINTS", "QwenSpec", "qwen_config", "write_qwen_checkpoint"]

_TOWER = {"depth": 4, "num_heads": 2, "patch_size": 4, "temporal_patch_size": 2}
_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_vl": {**_TOWER, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
    "qwen2_5_vl": {
        **_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    },
    "qwen3_vl": {
        **_TOWER,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 2],
    },
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "vocab_size": 320,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_SECTIONS = {"qwen2_vl": [2, 3, 3], "qwen2_5_vl": [2, 3, 3], "qwen3_vl": [4, 2, 2]}


@dataclass(frozen=True)
class QwenSpec:
    """One small configuration.

    Attributes:
        kind: ``model_type``.
        layout: Key layout and spelling of the config: the hub's, or that of transformers 5.
        tied: Whether the output layer is the embedding table.
        vision: What the vision config has beyond the common part.
        seed: Of the weights.
    """

    kind: str
    layout: Layout = "v5"
    tied: bool = False
    vision: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


QWEN_CHECKPOINTS: dict[str, QwenSpec] = {
    "qwen3-v5": QwenSpec("qwen3_vl"),
    "qwen3-hub-tied": QwenSpec("qwen3_vl", layout="hub", tied=True, seed=1),
    "qwen25-v5-tied": QwenSpec("qwen2_5_vl", tied=True, seed=2),
    "qwen25-hub": QwenSpec("qwen2_5_vl", layout="hub", seed=3),
    "qwen2-v5": QwenSpec("qwen2_vl", seed=4),
    "qwen2-hub-tied": QwenSpec("qwen2_vl", layout="hub", tied=True, seed=5),
}


def qwen_config(spec: QwenSpec) -> PreTrainedConfig:
    """The transformers config of ``spec``."""
    import transformers

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": _SECTIONS[spec.kind]}
    text = {**_TEXT, "rope_parameters": rope, "tie_word_embeddings": spec.tied}
    if spec.kind == "qwen3_vl":
        text["head_dim"] = 16
    config: PreTrainedConfig = transformers.AutoConfig.for_model(
        spec.kind,
        vision_config={**_TOWERS[spec.kind], **spec.vision},
        text_config=text,
        tie_word_embeddings=spec.tied,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    return config


def write_qwen_checkpoint(path: Path, name: str) -> Path:
    """Write the checkpoint of ``QWEN_CHECKPOINTS[name]`` (float32) to ``path``."""
    spec = QWEN_CHECKPOINTS[name]
    config = qwen_config(spec)
    return write_checkpoint(
        path,
        config,
        lively_tensors(config, spec.seed),
        layout=spec.layout,
        dtype="fp32",
        shard_size=10**9 if spec.layout == "v5" else 100_000,
        image_options={"size": {"shortest_edge": 64, "longest_edge": 100_000}},
    )
