"""What a CLIP-like tower can tell a selector beside its features (``selection.SIGNALS``).

Attention weights are recomputed from one layer's queries and keys, since fused attention
returns none: one layer norm and two projections of one layer, softmax in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["NEED_CLASS_TOKEN", "TowerState", "compute_signal"]

NEED_CLASS_TOKEN = frozenset({"cls_attention", "reader_cls_attention"})


class TowerState:
    """The inside of a tower after the crops of one picture.

    Attributes:
        layers: Encoder layers, each with ``layer_norm1`` and ``self_attn``.
        hidden: Input of every layer and the output of the last, [crops, T, E] each.
        chosen: ``vision_feature_layer`` as indices into ``hidden``, counted from 0.
        dropped: Tokens in front that are no image features: 1 where the class token is cropped.
    """

    def __init__(
        self, tower: Any, hidden: Sequence[torch.Tensor], chosen: int | Sequence[int], dropped: int
    ) -> None:
        numbers = [chosen] if isinstance(chosen, int) else list(chosen)
        self.layers = tower.encoder.layers
        self.hidden = hidden
        self.chosen = [number % len(hidden) for number in numbers]
        self.dropped = dropped

    @property
    def patches(self) -> torch.Tensor:
        """What the projector reads, [N, V] over all crops: the chosen layers side by side."""
        import torch

        rows = [self.hidden[index][:, self.dropped :].flatten(0, 1) for index in self.chosen]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """The part of [crops, T, ...] that belongs to the N image features, as float32."""
        return values[:, self.dropped :].flatten(0, 1).float()

    def queries_and_keys(self, layer: int, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Of one layer, each [crops, heads, T, E / heads]."""
        block = self.layers[layer]
        inputs = block.layer_norm1(self.hidden[layer])
        attention = block.self_attn
        queries, keys = attention.q_proj(inputs), attention.k_proj(inputs)
        shape = (*inputs.shape[:2], heads, -1)
        return queries.view(shape).transpose(1, 2), keys.view(shape).transpose(1, 2)

    @property
    def maker(self) -> int:
        """The layer that made the (deepest) features."""
        return max(max(self.chosen) - 1, 0)

    @property
    def reader(self) -> int:
        """The layer that would read them; the last one where none would."""
        return min(max(self.chosen), len(self.layers) - 1)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return int(self.layers[0].self_attn.num_heads)


def compute_signal(name: str, state: TowerState) -> torch.Tensor:
    """The signal ``name`` of one picture, float32 [N] or [N, E]."""
    return _SIGNALS[name](state)


def _attention(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention weights float32 [crops, heads, R, T] of R queries over the keys of their crop."""
    import torch

    logits = queries.float() @ keys.float().transpose(2, 3) / queries.shape[-1] ** 0.5
    return torch.softmax(logits, dim=-1)


def _cls_attention(state: TowerState) -> torch.Tensor:
    queries, keys = state.queries_and_keys(state.maker, state.heads)
    return state.rows(_attention(queries[:, :, :1], keys)[:, :, 0].mean(dim=1))


def _mean_attention(state: TowerState) -> torch.Tensor:
    queries, keys = state.queries_and_keys(state.maker, state.heads)
    return state.rows(_attention(queries, keys).mean(dim=(1, 2)))


def _keys(state: TowerState) -> torch.Tensor:
    return state.rows(state.queries_and_keys(state.maker, 1)[1][:, 0])


def _reader_cls_attention(state: TowerState) -> torch.Tensor:
    queries, keys = state.queries_and_keys(state.reader, 1)
    return state.rows(_attention(queries[:, :, :1], keys)[:, 0, 0])


def _reader_keys(state: TowerState) -> torch.Tensor:
    return state.rows(state.queries_and_keys(state.reader, 1)[1][:, 0])


def _patch_features(state: TowerState) -> torch.Tensor:
    return state.patches.float()


_SIGNALS: Mapping[str, Callable[[TowerState], torch.Tensor]] = {
    "cls_attention": _cls_attention,
    "mean_attention": _mean_attention,
    "keys": _keys,
    "reader_cls_attention": _reader_cls_attention,
    "reader_keys": _reader_keys,
    "patch_features": _patch_features,
}
