"""Export of the families that cut a picture into tiles: LLaVA-1.6, NeXT-Video and OneVision.

    pixel_values [crops, 3, S, S] ─► tower ─► rows [crops * patches, V]
        ─► projector ─► [crops * patches, hidden] + newline ─► gather by token_rows ─► [N, hidden]

LLaVA-NeXT-Video gathers, and so pools, in front of the projector; a newline, which has not been
through it, is put in behind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._clip import (
    LAYOUT,
    check_clip_tower,
    clip_signals,
    clip_tower_info,
    clip_unused,
    projector_module,
)
from divprune.export.families.protocol import VisionInput
from divprune.export.families.tower_signals import TowerState, compute_signal
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from divprune.runtime.directory.manifest_records import TowerInfo

__all__ = ["AnyresBase"]


class AnyresBase:
    """A config with grids of tiles.

    Attributes:
        model_class: The class in transformers.
        known_as: What users call its models.
        taps: Rows that a visual token is made of.
        gathers_first: Whether the gather stands in front of the projector.
    """

    name: ClassVar[str]
    position_axes: ClassVar[int] = 1
    positions: ClassVar[tuple[str, ...]] = ("contiguous", "original")
    tower_prefix: ClassVar[str] = "vision_tower."
    joined_rows: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    model_class: ClassVar[str]
    known_as: ClassVar[str]
    taps: ClassVar[int] = 1
    gathers_first: ClassVar[bool] = False

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        if self.text_config.model_type == "granite":
            raise UnsupportedError(
                "Granite Vision cannot be exported yet",
                expected="a decoder of the type llama, mistral, qwen2 or qwen3",
                found=f"model type {config.model_type} with a granite decoder",
            )
        check_clip_tower(config)
        self._check_rows()
        self._check_grids()

    @classmethod
    def check(cls, content: Mapping[str, Any]) -> None:
        """Check that config.json is that of the model as transformers saves it."""
        names = content.get("architectures") or []
        parts = (f"{part}_config" for part in ("text", "vision"))
        has_parts = all(isinstance(content.get(part), dict) for part in parts)
        if has_parts and all(name == cls.model_class for name in names):
            return
        found = ", ".join(map(str, names)) or "no text_config or vision_config"
        raise UnsupportedError(
            f"the architecture {found} is not supported",
            expected=f"{cls.model_class} as transformers saves it ({cls.known_as})",
            found=found,
        )

    @staticmethod
    def canonical_name(key: str) -> str:
        """Names of the llava-hf repositories, transformers since 4.52, and the original code."""
        return LAYOUT.canonical_name(key)

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the decoder."""
        config: PreTrainedConfig = self._config.text_config
        return config

    @property
    def vision_model(self) -> str:
        """``clip_vision_model`` or ``siglip_vision_model``."""
        return str(self._config.vision_config.model_type)

    @property
    def image_token_id(self) -> int:
        """``image_token_index`` of the config."""
        return int(self._config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """``video_token_index`` of the config, where it has one."""
        index = getattr(self._config, "video_token_id", None)
        return None if index is None else int(index)

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def tower(self) -> TowerInfo:
        """The tower up to the last layer that is used."""
        return clip_tower_info(self._config)

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """None: pictures have different ones."""
        return None

    @property
    def signals(self) -> frozenset[str]:
        """What the tower can tell a selector: all of it with a class token (CLIP)."""
        return clip_signals(self.vision_model)

    def facts(self) -> dict[str, Any]:
        """Sizes of a crop and of its patches, and the grids of tiles."""
        return {
            "image_size": self._side,
            "patch_size": self.tower.patch_size,
            "pinpoints": [list(grid) for grid in self._config.image_grid_pinpoints],
        }

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """Crops, and which of their rows the tokens are made of."""
        pixels = VisionInput("pixel_values", "float32", ("crops", 3, self._side, self._side))
        if self.taps == 1:
            return pixels, VisionInput("token_rows", "int64", ("tokens",))
        shape = ("tokens", self.taps)
        return (
            pixels,
            VisionInput("token_rows", "int64", shape),
            VisionInput("token_weights", "float32", shape),
        )

    def vision_outputs(self) -> tuple[str, ...]:
        """Nothing beside the features."""
        return ()

    def unused_tensors(self) -> frozenset[str]:
        """Encoder layers behind the last one that is used, and what follows them."""
        return clip_unused(self._config)

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """Tower, projector, newline and gather; ``signals`` [N] or [N, E] behind the features.

        A signal of a newline is 0.
        """
        return _vision_module(
            self._model_without_text(),
            self._config.vision_feature_layer,
            self._dropped_rows,
            tuple(signals),
            gathers_first=self.gathers_first,
        )

    def resized_vision_module(self, image_size: tuple[int, int]) -> torch.nn.Module:
        """Refuse: a smaller picture is one with fewer tiles."""
        raise UnsupportedError(
            "this model takes pictures of any size, so none can be scaled to one size",
            expected="a model with one crop for a selector that does so",
            found=self.name,
            fix="--max-image-tokens bounds the size of its pictures",
        )

    def projector_module(self) -> torch.nn.Module:
        """The projector alone: rows [K, V] to [K, hidden]; parameter names as in the whole."""
        model = self._model_without_text()
        del model.image_newline
        return projector_module(model)

    @property
    def _side(self) -> int:
        """Side of a crop in pixels."""
        return int(self._config.vision_config.image_size)

    @property
    def _dropped_rows(self) -> int:
        """Rows of a crop that are no visual tokens: 1 where the first one is left out."""
        return int(self._config.vision_feature_select_strategy == "default")

    def _model_without_text(self) -> Any:
        import torch
        import transformers

        with torch.device("meta"):
            model = getattr(transformers, self.model_class)(self._config).model
        del model.language_model
        return model

    def _check_rows(self) -> None:
        """Every patch, and nothing else, has to be a row of the tower: tiles are put together."""
        size = self._config.vision_config.image_size
        if not isinstance(size, int):
            raise UnsupportedError(
                "the vision tower does not take squares", expected="one image_size", found=size
            )
        has_class_token = self.vision_model == "clip_vision_model"
        if has_class_token != bool(self._dropped_rows):
            strategy = "default" if has_class_token else "full"
            raise UnsupportedError(
                "the tower's rows cannot be put together as a grid of patches",
                expected=f"vision_feature_select_strategy {strategy} with a {self.vision_model}",
                found=self._config.vision_feature_select_strategy,
            )

    def _check_grids(self) -> None:
        grids, side = self._config.image_grid_pinpoints, self._side
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
    layers: int | Sequence[int],
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


def _gather(rows: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
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
