"""Small LLaVA checkpoints with random weights, one for every feature that can go wrong.

The weights are those of transformers' own model; norms and biases are random too, so that leaving
one out shows in the logits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.export.checkpoint.random import Layout, TensorSource, write_checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import LlavaConfig, PreTrainedConfig

__all__ = [
    "TINY_CHECKPOINTS",
    "TinySpec",
    "lively_tensors",
    "tiny_config",
    "write_hub_cache",
    "write_tiny_checkpoint",
]

IMAGE_TOKEN_ID = 470
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "vocab_size": 480,
}


@dataclass(frozen=True)
class TinySpec:
    """One small configuration.

    Attributes:
        layout: Key layout and spelling of the config.
        tower: ``clip`` or ``siglip``.
        text: Model type of the text model.
        num_kv_heads: Key/value heads; the model has 4 query heads.
        strategy: ``vision_feature_select_strategy``.
        feature_layer: ``vision_feature_layer``.
        vision_options: What the vision config has beyond the common part.
        text_options: What the text config has beyond the common part.
        shard_size: Largest shard in bytes.
        seed: Of the weights.
    """

    layout: Layout = "v5"
    tower: str = "clip"
    text: str = "llama"
    num_kv_heads: int = 4
    strategy: str = "default"
    feature_layer: int | tuple[int, ...] = -2
    vision_options: Mapping[str, Any] = field(default_factory=dict)
    text_options: Mapping[str, Any] = field(default_factory=dict)
    shard_size: int = 10**9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tower not in ("clip", "siglip") or self.strategy not in ("default", "full"):
            raise ValueError(f"unknown tower or strategy: {self.tower}, {self.strategy}")

    @property
    def num_image_tokens(self) -> int:
        """Visual tokens that the language model sees for one image (N)."""
        vision = {**_VISION, **self.vision_options}
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        return patches + (self.tower == "clip") - (self.strategy == "default")


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_QWEN_IDS = {"bos_token_id": 0, "eos_token_id": 2}
_QWEN_TWO_ENDS = {"bos_token_id": 0, "eos_token_id": [2, 0]}

TINY_CHECKPOINTS: dict[str, TinySpec] = {
    "clip-llama-hub": TinySpec(layout="hub", shard_size=200_000),
    "clip-llama-v4-gqa2-full": TinySpec(layout="v4", num_kv_heads=2, strategy="full", seed=1),
    "clip-llama-v5-layers-biases": TinySpec(
        feature_layer=(-2, -4),
        num_kv_heads=1,
        text_options={"attention_bias": True, "mlp_bias": True},
        seed=2,
    ),
    "siglip-qwen2-v4-tied": TinySpec(
        layout="v4",
        tower="siglip",
        text="qwen2",
        num_kv_heads=2,
        strategy="full",
        feature_layer=-1,
        vision_options={"vision_use_head": False},
        text_options={"tie_word_embeddings": True, **_QWEN_IDS},
        seed=3,
    ),
    "siglip-qwen2-hub": TinySpec(
        layout="hub",
        tower="siglip",
        text="qwen2",
        strategy="full",
        feature_layer=-1,
        vision_options={"vision_use_head": False},
        text_options={"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, **_QWEN_IDS},
        seed=4,
    ),
    "siglip-qwen3-v5": TinySpec(
        tower="siglip",
        text="qwen3",
        num_kv_heads=2,
        text_options={"head_dim": 24, **_QWEN_TWO_ENDS},
        seed=5,
    ),
    "clip-mistral-hub-gqa1": TinySpec(
        layout="hub",
        text="mistral",
        num_kv_heads=1,
        text_options={"sliding_window": None, "head_dim": 16},
        shard_size=200_000,
        seed=6,
    ),
    "clip-llama-v5-llama3-rope": TinySpec(
        num_kv_heads=2,
        feature_layer=-1,
        vision_options={"image_size": 112, "patch_size": 14},
        text_options={"rope_parameters": _LLAMA3_ROPE},
        seed=7,
    ),
    "siglip-llama-v4-linear-rope": TinySpec(
        layout="v4",
        tower="siglip",
        num_kv_heads=1,
        feature_layer=(0, -2, -1),
        strategy="full",
        text_options={
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        },
        seed=8,
    ),
    "clip-llama-hub-tied-llama3-rope": TinySpec(
        layout="hub",
        text_options={"tie_word_embeddings": True, "rope_parameters": _LLAMA3_ROPE},
        seed=9,
    ),
}


def tiny_config(spec: TinySpec) -> LlavaConfig:
    """The transformers config of ``spec``."""
    from transformers import LlavaConfig

    layers = spec.feature_layer
    vision = {"model_type": f"{spec.tower}_vision_model", **_VISION, **spec.vision_options}
    text = {"model_type": spec.text, **_TEXT, "num_key_value_heads": spec.num_kv_heads}
    return LlavaConfig(
        vision_config=vision,
        text_config={**text, **spec.text_options},
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=spec.num_image_tokens,
        vision_feature_layer=list(layers) if isinstance(layers, tuple) else layers,
        vision_feature_select_strategy=spec.strategy,
        tie_word_embeddings=bool(spec.text_options.get("tie_word_embeddings", False)),
    )


def write_tiny_checkpoint(path: Path, spec_name: str) -> Path:
    """Write the checkpoint of ``TINY_CHECKPOINTS[spec_name]`` (float32) to ``path``."""
    spec = TINY_CHECKPOINTS[spec_name]
    config = tiny_config(spec)
    return write_checkpoint(
        path,
        config,
        lively_tensors(config, spec.seed),
        layout=spec.layout,
        dtype="fp32",
        shard_size=spec.shard_size,
    )


def lively_tensors(config: PreTrainedConfig, seed: int) -> dict[str, TensorSource]:
    """Weights by canonical name that leave no two answers alike."""
    import transformers

    from divprune.export.checkpoint.checkpoint import LM_HEAD
    from divprune.export.families import class_of

    auto_model: Any = transformers.AutoModelForImageTextToText
    model = auto_model.from_config(config).eval()
    _randomise(model, seed)
    canonical_name = class_of(config.model_type).canonical_name
    tensors = {
        canonical_name(key): TensorSource.of(value.numpy())
        for key, value in model.state_dict().items()
    }
    if config.tie_word_embeddings:
        del tensors[LM_HEAD]
    return tensors


def write_hub_cache(
    hf_home: Path, repo_id: str, checkpoint: Path, commit: str, branch: str = "main"
) -> Path:
    """Lay out ``checkpoint`` as huggingface_hub's cache would after a download.

    With ``HF_HOME=hf_home HF_HUB_OFFLINE=1`` the repository is then found without a network.
    Returns the snapshot directory.
    """
    root = hf_home / "hub" / f"models--{repo_id.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for directory in (root / "blobs", root / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (root / "refs" / branch).write_text(commit)
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def _randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter a random value of a size at which logits vary between tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight") or "layer_norm" in name or "layrnorm" in name:
                is_scale = name.endswith("weight")
                parameter.copy_((1 if is_scale else 0) + 0.2 * noise)
            elif name.endswith("image_newline"):
                parameter.copy_(noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            elif "embed" in name:
                parameter.copy_(0.15 * noise)
            else:
                parameter.copy_(1.2 / math.sqrt(parameter.shape[-1]) * noise)
