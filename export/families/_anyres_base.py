"""Export of the families that cut a picture into tiles: LLaVA-1.6, NeXT-Video and OneVision.

    pixel_values [crops, 3, S, S] ─► tower ─► rows [crops * patches, V]
        ─► projector ─► [crops * patches, hidden] + newline ─► gather by token_rows ─► [N, hidden]

LLaVA-NeXT-Video gathers, and so pools, in front of the projector; a newline, which has not been
through it, is put in behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._llava_base import LlavaBase
from divprune.export.families.protocol import VisionInput
from divprune.export.families.tower_signals import TowerState, compute_signal
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["AnyresBase"]


class AnyresBase(LlavaBase):
    """A config with grids of tiles.

    Attributes:
        taps: Rows that a visual token is made of.
        gathers_first: Whether the gather stands in front of the projector.
    """

    taps: ClassVar[int] = 1
    gathers_first: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        """Bind to a config.

        Raises:
            UnsupportedError: naming the first setting that cannot be carried out.
        """
        super().__init__(config)
        if self.text_config.model_type == "granite":
            raise UnsupportedError(
                "Granite Vision cannot be exported yet",
                expected="a decoder of the type llama, mistral, qwen2 or qwen3",
                found=f"model type {config.model_type} with a granite decoder",
            )
        self._check_tower()
        self._check_grids()

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """None: pictures have different ones."""
        return None

    @property
    def side(self) -> int:
        """Side of a crop in pixels."""
        return int(self._config.vision_config.image_size)

    def facts(self) -> dict[str, Any]:
        """Sizes, grids and the texts of the visual tokens."""
        facts: dict[str, Any] = {
            "image_token": "<image>",
            "image_size": self.side,
            "patch_size": self.tower.patch_size,
            "pinpoints": [list(grid) for grid in self._config.image_grid_pinpoints],
        }
        return facts if self.video_token_id is None else {**facts, "video_token": "<video>"}

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """Crops, and which of their rows the tokens are made of."""
        pixels = VisionInput("pixel_values", "float32", ("crops", 3, self.side, self.side))
        if self.taps == 1:
            return pixels, VisionInput("token_rows", "int64", ("tokens",))
        shape = ("tokens", self.taps)
        return (
            pixels,
            VisionInput("token_rows", "int64", shape),
            VisionInput("token_weights", "float32", shape),
        )

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """Tower, projector, newline and gather; ``signals`` [N] or [N, E] behind the features.

        A signal of a newline is 0.
        """
        return _vision_module(
            self.model_without_text(),
            self.feature_layers,
            self.dropped_rows,
            tuple(signals),
            gathers_first=self.gathers_first,
        )

    def _check_tower(self) -> None:
        """Every patch, and nothing else, has to be a row of the tower: tiles are put together."""
        size = self._config.vision_config.image_size
        if not isinstance(size, int):
            raise UnsupportedError(
                "the vision tower does not take squares", expected="one image_size", found=size
            )
        has_class_token = self.vision_model == "clip_vision_model"
        if has_class_token != bool(self.dropped_rows):
            strategy = "default" if has_class_token else "full"
            raise UnsupportedError(
                "the tower's rows cannot be put together as a grid of patches",
                expected=f"vision_feature_select_strategy {strategy} with a {self.vision_model}",
                found=self._config.vision_feature_select_strategy,
            )

    def _check_grids(self) -> None:
        grids, side = self._config.image_grid_pinpoints, self.side
        if grids and all(_is_grid(grid, side) for grid in grids):
            return
        raise UnsupportedError(
            "image_grid_pinpoints cannot be cut into tiles",
            expected=f"pairs of multiples of {side}, the side of the tower's input",
            found=grids,
        )


def _is_grid(grid: Any, side: int) -> bool:
    return len(grid) == 2 and all(length > 0 and length % side == 0 for length in grid)


def _vision_module(
    model: Any,
    layers: tuple[int, ...],
    dropped: int,
    signals: tuple[str, ...],
    *,
    gathers_first: bool,
) -> torch.nn.Module:
    import torch

    class AnyresFeatures(torch.nn.Module):
        """pixel_values [crops, 3, S, S] and an index to image features [N, hidden], signals."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(
            self,
            pixel_values: torch.Tensor,
            token_rows: torch.Tensor,
            token_weights: torch.Tensor | None = None,
        ) -> torch.Tensor | tuple[torch.Tensor, ...]:
            tower = self.model.vision_tower
            pixels = pixel_values.to(self.model.dtype)
            hidden = tower(pixels, output_hidden_states=True).hidden_states
            state = TowerState(tower, hidden, layers, dropped)
            newline = self.model.image_newline
            if gathers_first:
                rows = _gather(_with_zeros(state.patches), token_rows, token_weights)
                first = token_rows[:, :1]
                projected = self.model.multi_modal_projector(rows)
                features = torch.where(first == state.patches.shape[0], newline, projected)
            else:
                projected = self.model.multi_modal_projector(state.patches)
                table = torch.cat([projected, newline[None].to(projected.dtype)])
                features = _gather(table, token_rows, token_weights)
            if not signals:
                return features
            made = (_with_zeros(compute_signal(name, state)) for name in signals)
            return features, *(_gather(rows, token_rows, token_weights) for rows in made)

    return AnyresFeatures().eval()


def _with_zeros(rows: torch.Tensor) -> torch.Tensor:
    """The row of the newline, which has no patch, behind those of the crops."""
    import torch

    return torch.cat([rows, torch.zeros_like(rows[:1])])


def _gather(
    rows: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Rows [R, ...] to [N, ...]: one a token, or the weighted sum of several, one after another.

    All of them at once would be T times the features in memory.
    """
    import torch

    if weights is None:
        return torch.index_select(rows, 0, index)
    shape = (-1, *[1] * (rows.ndim - 1))
    scales = weights.to(rows.dtype)
    total = torch.index_select(rows, 0, index[:, 0]) * scales[:, 0].reshape(shape)
    for tap in range(1, weights.shape[1]):
        part = torch.index_select(rows, 0, index[:, tap])
        total = total + part * scales[:, tap].reshape(shape)
    return total
