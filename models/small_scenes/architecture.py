"""The model: LlavaForConditionalGeneration, small, and how its weights begin.

The tower's position embeddings begin as sines of the patch's place, and each head of its first
layers begins looking at one neighbour of its patch, as a convolution would: attention then need
not find out first which patches touch. Everything is learned from there on.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from models.small_scenes.checkpoint_files import (
    IMAGE_TOKEN,
    MAX_POSITIONS,
    PATCH_SIZE,
    make_tokenizer,
)
from models.small_scenes.scenes import IMAGE_SIZE

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

__all__ = ["GRID", "NUM_IMAGE_TOKENS", "USED_TOWER_LAYERS", "make_config", "make_model"]

GRID = IMAGE_SIZE // PATCH_SIZE
NUM_IMAGE_TOKENS = GRID * GRID
USED_TOWER_LAYERS = 4  # of 5: LLaVA takes the features before the last layer
_HEAD = 32  # size of a head; also the width kept for positions in the tower at the start
_NEIGHBOURS = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, 1), (1, -1), (-1, -1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
)
_FREQUENCIES = torch.logspace(math.log10(0.2), math.log10(2.0), _HEAD // 4)  # radians a patch
_SHARPNESS = 2.0
_RESIDUAL = ("out_proj.weight", "fc2.weight", "o_proj.weight", "down_proj.weight")


def make_config() -> LlavaConfig:
    """About 1.4 M parameters: a tower of 5 layers, a decoder of 4, both 128 wide."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tokenizer = make_tokenizer()
    ids = {name: tokenizer.token_to_id(f"<{name}>") for name in ("s", "/s", "pad")}
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=USED_TOWER_LAYERS + 1,
        num_attention_heads=128 // _HEAD,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=-(-tokenizer.get_vocab_size() // 8) * 8,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=_HEAD,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        bos_token_id=ids["s"],
        eos_token_id=ids["/s"],
        pad_token_id=ids["pad"],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.token_to_id(IMAGE_TOKEN),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def make_model(seed: int) -> LlavaForConditionalGeneration:
    """A fresh model in float32."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(make_config())
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, weight in model.named_parameters():
            if name.endswith(_RESIDUAL):
                weight.mul_(0.35)
        nn.init.normal_(model.model.language_model.embed_tokens.weight, std=0.5)
        nn.init.normal_(model.lm_head.weight, std=0.02)
        _begin_local(model.model.vision_tower)
    return model


def _begin_local(tower: Any) -> None:
    """Write the position embeddings and the first layers' queries and keys."""
    embeddings = tower.embeddings
    nn.init.normal_(embeddings.patch_embedding.weight, std=0.03)
    embeddings.patch_embedding.weight[:_HEAD] = 0
    nn.init.normal_(embeddings.class_embedding, std=0.5)
    embeddings.class_embedding[:_HEAD] = 0
    nn.init.normal_(embeddings.position_embedding.weight, std=0.02)
    place = torch.arange(GRID, dtype=torch.float32)
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    code = torch.cat([_waves(columns.reshape(-1)), _waves(rows.reshape(-1))], dim=1)
    embeddings.position_embedding.weight[1:, :_HEAD] = code
    embeddings.position_embedding.weight[0, :_HEAD] = 0
    for layer, offsets in zip(tower.encoder.layers, _NEIGHBOURS, strict=False):
        attention = layer.self_attn
        for head, (dx, dy) in enumerate(offsets):
            rows_of_head = slice(head * _HEAD, (head + 1) * _HEAD)
            for weight in (attention.q_proj.weight, attention.k_proj.weight):
                weight[rows_of_head] *= 0.1
            shift = torch.block_diag(_rotation(dx), _rotation(dy))
            attention.q_proj.weight[rows_of_head, :_HEAD] += _SHARPNESS * shift
            attention.k_proj.weight[rows_of_head, :_HEAD] += torch.eye(_HEAD)


def _waves(place: Tensor) -> Tensor:
    """Sine and cosine of each frequency at ``place`` [n], as [n, 16]."""
    angles = place[:, None] * _FREQUENCIES
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _rotation(offset: int) -> Tensor:
    """The matrix that takes the waves of a place to those of ``offset`` patches further."""
    cos, sin = torch.diag((offset * _FREQUENCIES).cos()), torch.diag((offset * _FREQUENCIES).sin())
    return torch.cat([torch.cat([cos, sin], 1), torch.cat([-sin, cos], 1)], 0)
