"""Qwen2-VL: full attention, nothing learned about where a patch lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._qwen_tower import Rotary, attend, embed_patches
from divprune.export.families._qwen_vision import QwenVisionFamily

if TYPE_CHECKING:
    import torch

__all__ = ["FAMILY", "Qwen2VLFamily"]


class Qwen2VLFamily(QwenVisionFamily):
    """``Qwen2VLForConditionalGeneration`` (2B, 7B)."""

    name: ClassVar[str] = "qwen2_vl"
    architecture: ClassVar[str] = "Qwen2VLForConditionalGeneration"

    @property
    def width(self) -> int:
        """``hidden_size`` of this tower's config is the width of what comes out."""
        return int(self._vision.embed_dim)

    @property
    def feed_forward(self) -> int:
        """A multiple of the width."""
        return int(self._vision.embed_dim * self._vision.mlp_ratio)

    @staticmethod
    def build_tower(config: Any) -> Any:
        """The tower of transformers, whose ``AutoModel`` does not know this one."""
        from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

        return qwen.Qwen2VisionTransformerPretrainedModel(config)

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """The vision inputs to features [N, hidden]."""
        del signals
        return _tower_module(self._tower())


def _tower_module(tower: Any) -> torch.nn.Module:
    import torch

    class Tower(torch.nn.Module):
        """Patch rows to features."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = tower

        def forward(self, pixel_values: torch.Tensor, rotary_angles: torch.Tensor) -> torch.Tensor:
            hidden = embed_patches(self.visual.patch_embed.proj, pixel_values, merge=2)
            rotary = Rotary.of(rotary_angles)
            for block in self.visual.blocks:
                hidden = hidden + attend(block.attn, block.norm1(hidden), rotary)
                hidden = hidden + block.mlp(block.norm2(hidden))
            features: torch.Tensor = self.visual.merger(hidden)
            return features

    return Tower().eval()


FAMILY = Qwen2VLFamily
