"""The forward pass of training: the model's own modules, many questions a picture at once.

A picture is encoded once. Its questions stand behind it in one row; each sees the picture and
itself only, at the positions it would have if it were alone, so that training on many questions
is exactly inference on each (tests/models/test_forward.py holds it against transformers).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.small_scenes.architecture import USED_TOWER_LAYERS

__all__ = ["encode_patches", "project", "question_mask", "text_states"]

_HEAD = 32


def encode_patches(tower: Any, pixel_values: Tensor) -> Tensor:
    """Features of every patch without CLS, [B, 196, 128], from pixels [B, 3, 112, 112]."""
    states = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for layer in tower.encoder.layers[:USED_TOWER_LAYERS]:
        normed = layer.layer_norm1(states)
        attention = layer.self_attn
        query, key = _split(attention.q_proj(normed)), _split(attention.k_proj(normed))
        value = _split(attention.v_proj(normed))
        seen = F.scaled_dot_product_attention(query, key, value)
        states = states + attention.out_proj(_join(seen))
        hidden = F.gelu(layer.mlp.fc1(layer.layer_norm2(states)))
        states = states + layer.mlp.fc2(hidden)
    return states[:, 1:]


def project(projector: Any, patches: Tensor) -> Tensor:
    """The visual tokens of the patches."""
    projected: Tensor = projector.linear_2(F.gelu(projector.linear_1(patches)))
    return projected


def question_mask(owner: Tensor, prefix: int) -> Tensor:
    """Who a text row may see, bool [B, 1, T, prefix + T]; ``owner`` [B, T] numbers questions."""
    length = owner.shape[1]
    own = (owner[:, :, None] == owner[:, None, :]) & torch.ones(length, length).tril().bool()
    everything = torch.ones(owner.shape[0], length, prefix, dtype=torch.bool)
    return torch.cat([everything, own], dim=2)[:, None]


def text_states(
    decoder: Any, prefix: Tensor, text: Tensor, positions: Tensor, bias: Tensor
) -> Tensor:
    """Last hidden states of the text rows, normed.

    Args:
        decoder: The model's LlamaModel.
        prefix: Embeddings of what all questions share, [B, P, 128].
        text: Embeddings of the questions, [B, T, 128].
        positions: Position of every text row, int64 [B, T].
        bias: Added to attention scores, [B, 1, T, P + T].
    """
    length = prefix.shape[1]
    shared = torch.arange(length).expand(prefix.shape[0], -1)
    cos, sin = decoder.rotary_emb(prefix, torch.cat([shared, positions], dim=1))
    cos, sin = cos[:, None], sin[:, None]
    states = torch.cat([prefix, text], dim=1)
    last = len(decoder.layers) - 1
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        normed = _rms(layer.input_layernorm, states)
        key = _rotate(_split(attention.k_proj(normed)), cos, sin)
        value = _split(attention.v_proj(normed))
        if index == last:  # nothing reads the picture's rows any more
            states, normed = states[:, length:], normed[:, length:]
            cos, sin = cos[:, :, length:], sin[:, :, length:]
        query = _rotate(_split(attention.q_proj(normed)), cos, sin)
        states = states + attention.o_proj(_join(_attend(query, key, value, bias, length)))
        normed = _rms(layer.post_attention_layernorm, states)
        mlp = layer.mlp
        states = states + mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return _rms(decoder.norm, states)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, length: int) -> Tensor:
    """Causal over the shared part where it has queries, by ``bias`` for the text."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    rows = query.shape[2] - bias.shape[2]
    text = F.scaled_dot_product_attention(query[:, :, rows:], key, value, attn_mask=bias)
    if rows == 0:
        return text
    shared = F.scaled_dot_product_attention(
        query[:, :, :rows], key[:, :, :length], value[:, :, :length], is_causal=True
    )
    return torch.cat([shared, text], dim=2)


def _split(states: Tensor) -> Tensor:
    return states.unflatten(-1, (-1, _HEAD)).transpose(1, 2)


def _join(heads: Tensor) -> Tensor:
    return heads.transpose(1, 2).flatten(-2)


def _rms(norm: Any, states: Tensor) -> Tensor:
    wide = states.float()
    return norm.weight * (wide * torch.rsqrt(wide.square().mean(-1, True) + norm.variance_epsilon))


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-second, first], dim=-1) * sin
