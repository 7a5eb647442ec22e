"""Qwen3-VL: full attention, resampled learned positions, features for early decoder layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._qwen_tower import Rotary, attend, embed_patches
from divprune.export.families._qwen_vision import QwenVisionFamily
from divprune.export.families.protocol import VisionInput
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["FAMILY", "Qwen3VLFamily"]

_TAPS = 4


class Qwen3VLFamily(QwenVisionFamily):
    """``Qwen3VLForConditionalGeneration`` as transformers saves it (2B, 4B, 8B)."""

    name: ClassVar[str] = "qwen3_vl"
    architecture: ClassVar[str] = "Qwen3VLForConditionalGeneration"

    @classmethod
    def check(cls, content: Mapping[str, Any]) -> None:
        """As for all; the list of layers for DeepStack must be stated."""
        super().check(content)
        vision = content.get("vision_config") or {}
        if not isinstance(vision.get("deepstack_visual_indexes"), list):
            raise UnsupportedError(
                "the config does not say which layers give features to the decoder's first ones",
                expected="vision_config.deepstack_visual_indexes, such as [5, 11, 17]",
                found=vision.get("deepstack_visual_indexes"),
                fix="copy config.json from the model's repository",
            )

    def facts(self) -> dict[str, Any]:
        """With the side of the learned position table."""
        return super().facts() | {"position_side": self._side()}

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """With the taps of the resampled positions."""
        shape = ("cells", 4, _TAPS)
        return (
            *super().vision_inputs(),
            VisionInput("position_rows", "int64", shape),
            VisionInput("position_weights", "float32", shape),
        )

    def vision_outputs(self) -> tuple[str, ...]:
        """A plane of features for each of the decoder's first layers."""
        return tuple(f"deepstack_{i}" for i in range(len(self._vision.deepstack_visual_indexes)))

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """The vision inputs to features [N, hidden] and ``vision_outputs`` of the same shape."""
        del signals
        return _tower_module(self._tower(), list(self._vision.deepstack_visual_indexes))

    def _no_layers(self) -> dict[str, Any]:
        return {"deepstack_visual_indexes": []}

    def _side(self) -> int:
        return int(self._vision.num_position_embeddings**0.5)

    def _check_vision(self) -> None:
        super()._check_vision()
        layers = list(self._vision.deepstack_visual_indexes)
        if sorted({*layers}) != layers or not all(0 <= i < self._vision.depth for i in layers):
            raise UnsupportedError(
                "the layers that give features to the decoder are not layers of the tower in order",
                expected=f"ascending numbers below {self._vision.depth}",
                found=f"vision_config.deepstack_visual_indexes {layers}",
            )
        if self._side() ** 2 != self._vision.num_position_embeddings:
            raise UnsupportedError(
                "the tower's learned positions are not those of a square",
                expected="a square number",
                found=f"vision_config.num_position_embeddings "
                f"{self._vision.num_position_embeddings}",
            )


def _tower_module(tower: Any, deepstack: list[int]) -> torch.nn.Module:
    import torch

    class Tower(torch.nn.Module):
        """Patch rows to features, and a plane for each DeepStack layer."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = tower

        def forward(
            self,
            pixel_values: torch.Tensor,
            rotary_angles: torch.Tensor,
            position_rows: torch.Tensor,
            position_weights: torch.Tensor,
        ) -> tuple[torch.Tensor, ...]:
            visual = self.visual
            hidden = embed_patches(visual.patch_embed.proj, pixel_values, merge=2)
            taps = visual.pos_embed(position_rows).float() * position_weights[..., None]
            hidden = hidden + taps.sum(2).flatten(0, 1).to(hidden.dtype)
            rotary = Rotary.of(rotary_angles)
            planes: list[torch.Tensor] = []
            for layer, block in enumerate(visual.blocks):
                hidden = hidden + attend(block.attn, block.norm1(hidden), rotary)
                hidden = hidden + block.mlp(block.norm2(hidden))
                if layer in deepstack:
                    merger = visual.deepstack_merger_list[len(planes)]
                    planes.append(merger(hidden))
            return visual.merger(hidden), *planes

    return Tower().eval()


FAMILY = Qwen3VLFamily
