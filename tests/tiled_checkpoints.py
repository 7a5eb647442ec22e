"""Small InternVL, SmolVLM and Idefics3 checkpoints with random weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checkpoints import lively_tensors
from divprune.export.checkpoint.random import Layout, write_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["TILED_CHECKPOINTS", "TiledSpec", "write_tiled_checkpoint"]

_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "vocab_size": 512,
}


@dataclass(frozen=True)
class TiledSpec:
    """One small configuration.

    Attributes:
        model_type: ``internvl``, ``smolvlm`` or ``idefics3``.
        text: Model type of the text model.
        tied: Whether the output layer is the embedding table.
        layout: Key layout and spelling of the config.
        vision: What the vision config has beyond the common part.
        text_options: What the text config has beyond the common part.
        options: What the config of the whole has.
        merges_newlines: Whether two line feeds are one token.
        seed: Of the weights.
    """

    model_type: str
    text: str
    tied: bool = False
    layout: Layout = "v5"
    vision: dict[str, Any] = field(default_factory=dict)
    text_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    merges_newlines: bool = False
    seed: int = 0


_TILE = {"image_size": [16, 16], "patch_size": [4, 4], "attention_bias": True}
_CROP = {"image_size": 16, "patch_size": 4}
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}

TILED_CHECKPOINTS: dict[str, TiledSpec] = {
    "internvl-qwen2-hub": TiledSpec(
        "internvl",
        "qwen2",
        layout="hub",
        vision=_TILE,
        text_options={"rope_parameters": _DYNAMIC_ROPE},
    ),
    "internvl-qwen3-tied": TiledSpec("internvl", "qwen3", tied=True, vision=_TILE, seed=1),
    "internvl-qwen2-6b-tower": TiledSpec(
        "internvl",
        "qwen2",
        tied=True,
        vision={**_TILE, "use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False},
        seed=2,
    ),
    "smolvlm-llama": TiledSpec(
        "smolvlm", "llama", layout="hub", vision=_CROP, options={"scale_factor": 2}, seed=3
    ),
    "smolvlm-llama-tied-merging": TiledSpec(
        "smolvlm",
        "llama",
        tied=True,
        vision={"image_size": 24, "patch_size": 4},
        options={"scale_factor": 3},
        merges_newlines=True,
        seed=4,
    ),
    "idefics3-llama": TiledSpec(
        "idefics3", "llama", vision=_CROP, options={"scale_factor": 2}, seed=5
    ),
}


def write_tiled_checkpoint(path: Path, name: str) -> Path:
    """Write the checkpoint of ``TILED_CHECKPOINTS[name]`` (float32) to ``path``."""
    spec = TILED_CHECKPOINTS[name]
    config = _config(spec)
    tensors = lively_tensors(config, spec.seed)
    write_checkpoint(path, config, tensors, layout=spec.layout, dtype="fp32")
    if not spec.merges_newlines:
        _split_newlines(path / "tokenizer.json")
    return path


def _config(spec: TiledSpec) -> PreTrainedConfig:
    import transformers

    options = dict(spec.options)
    end = 2
    if spec.model_type == "internvl":
        side, patch = (spec.vision[key][0] for key in ("image_size", "patch_size"))
        options["image_seq_length"] = (side // patch // 2) ** 2
    else:
        end = _TEXT["vocab_size"] - 1
    text = {"model_type": spec.text, **_TEXT, "bos_token_id": None, "eos_token_id": end}
    text |= {"pad_token_id": None, "tie_word_embeddings": spec.tied}
    config: PreTrainedConfig = transformers.AutoConfig.for_model(
        spec.model_type,
        vision_config={**_VISION, **spec.vision},
        text_config={**text, **spec.text_options},
        image_token_id=500,
        tie_word_embeddings=spec.tied,
        **options,
    )
    return config


def _split_newlines(path: Path) -> None:
    """Let two line feeds be two tokens."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"].remove(["Ċ", "Ċ"])
    path.write_text(json.dumps(content), encoding="utf-8")
