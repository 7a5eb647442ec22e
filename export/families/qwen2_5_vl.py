"""Qwen2.5-VL: attention inside windows in all layers but a few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._qwen_tower import Rotary, Windows, attend, embed_patches
from divprune.export.families._qwen_vision import QwenVisionFamily
from divprune.export.families.protocol import VisionInput
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch

__all__ = ["FAMILY", "Qwen25VLFamily"]


class Qwen25VLFamily(QwenVisionFamily):
    """``Qwen2_5_VLForConditionalGeneration`` (3B, 7B)."""

    name: ClassVar[str] = "qwen2_5_vl"
    architecture: ClassVar[str] = "Qwen2_5_VLForConditionalGeneration"

    def facts(self) -> dict[str, Any]:
        """With cells of a window's side, and what a second of video counts."""
        return super().facts() | {
            "window_side": self._window_side(),
            "tokens_per_second": int(self._vision.tokens_per_second),
        }

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """With the windows."""
        window = ("windows", 4 * self._window_side() ** 2)
        return (
            *super().vision_inputs(),
            VisionInput("window_rows", "int64", window),
            VisionInput("window_mask", "float32", window),
            VisionInput("window_slots", "int64", ("cells", 4)),
        )

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """The vision inputs to features [N, hidden], in raster order throughout."""
        del signals
        return _tower_module(self._tower(), frozenset(self._vision.fullatt_block_indexes))

    def _window_side(self) -> int:
        return int(self._vision.window_size // 2 // self._vision.patch_size)

    def _check_vision(self) -> None:
        super()._check_vision()
        vision = self._vision
        if self._window_side() < 1:
            raise UnsupportedError(
                "the tower's windows are smaller than a merged patch",
                expected=f"vision_config.window_size of at least {2 * vision.patch_size}",
                found=vision.window_size,
            )
        if not all(0 <= layer < vision.depth for layer in vision.fullatt_block_indexes):
            raise UnsupportedError(
                "layers of full attention are not layers of the tower",
                expected=f"numbers below {vision.depth}",
                found=f"vision_config.fullatt_block_indexes {list(vision.fullatt_block_indexes)}",
            )


def _tower_module(tower: Any, full_layers: frozenset[int]) -> torch.nn.Module:
    import torch

    class Tower(torch.nn.Module):
        """Patch rows to features.

        transformers permutes all patches into the order of the windows and the features back;
        here they stay in raster order, and only what a window attends to is gathered.
        """

        def __init__(self) -> None:
            super().__init__()
            self.visual = tower

        def forward(
            self,
            pixel_values: torch.Tensor,
            rotary_angles: torch.Tensor,
            window_rows: torch.Tensor,
            window_mask: torch.Tensor,
            window_slots: torch.Tensor,
        ) -> torch.Tensor:
            hidden = embed_patches(self.visual.patch_embed.proj, pixel_values, merge=2)
            everywhere = Rotary.of(rotary_angles)
            windows = Windows(window_rows, window_mask, window_slots.flatten())
            inside = windows.turned(everywhere, hidden.shape[0])
            for layer, block in enumerate(self.visual.blocks):
                normed = block.norm1(hidden)
                if layer in full_layers:
                    hidden = hidden + attend(block.attn, normed, everywhere)
                else:
                    hidden = hidden + attend(block.attn, normed, inside, windows)
                hidden = hidden + block.mlp(block.norm2(hidden))
            features: torch.Tensor = self.visual.merger(hidden)
            return features

    return Tower().eval()


FAMILY = Qwen25VLFamily
