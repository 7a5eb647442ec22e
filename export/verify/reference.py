"""Give transformers' own modules the weights that were exported, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.vision.trace import buffer_values

if TYPE_CHECKING:
    import torch

__all__ = ["load_weights"]


def load_weights(module: torch.nn.Module, weights: WeightSource, prefix: str = "") -> None:
    """Give a module on the meta device the weights that the graphs have, in float32."""
    import torch

    state = {
        name: weights.reference(prefix + name if prefix else weights.canonical_name(name))
        for name, _ in module.named_parameters()
    }
    module.load_state_dict(state, assign=True, strict=False)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            owner, _, attribute = name.rpartition(".")
            values = torch.from_numpy(buffer_values(name, buffer.shape[-1]))
            setattr(module.get_submodule(owner), attribute, values)
