"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common at export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families.protocol import VisionInput
from divprune.runtime.directory.manifest_records import TowerInfo
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families._qwen_vision import DEFAULT_MAX_TOKENS

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["QwenVisionFamily"]

_MERGE = 2
_MAX_FRAME_STEPS = 8
"""Steps of time of a video, two frames each: TensorRT holds scratch memory for all of them."""


class QwenVisionFamily:
    """A tower over patches of any grid, a merger of 2 x 2 patches, three positions a token."""

    name: ClassVar[str]
    position_axes: ClassVar[int] = 3
    # Numbering rows anew would leave the grid of what is kept without a meaning.
    positions: ClassVar[tuple[str, ...]] = ("original",)
    # The mergers behind the blocks stay as they are: the selection compares what they make.
    tower_prefix: ClassVar[str] = "visual.blocks."
    joined_rows: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    architecture: ClassVar[str]

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config: Any = config
        self._vision: Any = config.vision_config
        self._check_vision()

    @classmethod
    def check(cls, content: Mapping[str, Any]) -> None:
        """Check ``config.json`` before transformers reads it.

        Raises:
            UnsupportedError: naming the architecture, or the setting that cannot be carried out.
        """
        architectures = content.get("architectures") or [cls.architecture]
        if architectures != [cls.architecture]:
            found = ", ".join(map(str, architectures))
            raise UnsupportedError(
                f"the architecture {found} is not supported",
                expected=f"{cls.architecture} as transformers saves it",
                found=found,
            )
        text = content.get("text_config") or content
        if text.get("use_sliding_window") is True:
            raise UnsupportedError(
                "sliding-window attention is not supported",
                expected="use_sliding_window false",
                found="true",
            )

    @staticmethod
    def canonical_name(key: str) -> str:
        """``visual.…``, ``language_model.…`` and ``lm_head.weight``.

        The hub's Qwen2-VL and Qwen2.5-VL call the decoder ``model.…``; transformers 5 and
        Qwen3-VL call it ``model.language_model.…`` and the tower ``model.visual.…``.
        """
        for part in ("visual.", "language_model."):
            if key.startswith(f"model.{part}"):
                return key.removeprefix("model.")
        if key.startswith("model."):
            return f"language_model.{key.removeprefix('model.')}"
        return key

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the decoder."""
        config: PreTrainedConfig = self._config.text_config
        return config

    @property
    def vision_model(self) -> str:
        """Such as ``qwen3_vl_vision``."""
        return str(self._vision.model_type)

    @property
    def image_token_id(self) -> int:
        """``<|image_pad|>``."""
        return int(self._config.image_token_id)

    @property
    def video_token_id(self) -> int | None:
        """``<|video_pad|>``."""
        return int(self._config.video_token_id)

    @property
    def tied_head(self) -> bool:
        """Whether ``lm_head`` is the embedding table."""
        return bool(self._config.tie_word_embeddings)

    @property
    def width(self) -> int:
        """Of the tower's rows."""
        return int(self._vision.hidden_size)

    @property
    def feed_forward(self) -> int:
        """Width inside the tower's feed-forward layers."""
        return int(self._vision.intermediate_size)

    @property
    def tower(self) -> TowerInfo:
        """The tower; as many rows as the largest picture of a default export has patches."""
        vision = self._vision
        return TowerInfo(
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_layers=int(vision.depth),
            num_heads=int(vision.num_heads),
            num_positions=DEFAULT_MAX_TOKENS * _MERGE**2,
            patch_size=int(vision.patch_size),
            num_channels=int(vision.in_channels),
            feature_size=self.width * _MERGE**2,
        )

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Every picture has its own."""
        return None

    @property
    def signals(self) -> frozenset[str]:
        """None: there is no class token to rank patches by."""
        return frozenset()

    def facts(self) -> dict[str, Any]:
        """Sizes of patches, and the tower's rotary frequencies as transformers computes them."""
        small = type(self._vision)(**{**self._vision.to_dict(), "depth": 0, **self._no_layers()})
        rotary = self.build_tower(small).rotary_pos_emb
        return {
            "patch_size": int(self._vision.patch_size),
            "merge_size": _MERGE,
            "temporal_patch_size": int(self._vision.temporal_patch_size),
            "rotary_frequencies": rotary.inv_freq.double().tolist(),
            "max_frame_steps": _MAX_FRAME_STEPS,
        }

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """Patch rows and angles; ``cells`` are merged tokens of a frame."""
        patches = _MERGE**2
        vision = self._vision
        row = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        half = self.width // vision.num_heads // 2
        return (
            VisionInput("pixel_values", "float32", ("frames", "cells", patches * row)),
            VisionInput("rotary_angles", "float32", ("cells", patches, half)),
        )

    def vision_outputs(self) -> tuple[str, ...]:
        """None but the features."""
        return ()

    def unused_tensors(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """A module without weights: the vision inputs to features [N, hidden]."""
        raise NotImplementedError

    def projector_module(self) -> torch.nn.Module:
        """The merger alone: rows [K, patches of a cell * width] to [K, hidden]."""
        return _merger(self._tower())

    @staticmethod
    def build_tower(config: Any) -> Any:
        """The tower of transformers for a vision config."""
        import transformers

        kind: Any = transformers.AutoModel
        return kind.from_config(config)

    def _tower(self) -> Any:
        """The tower on the meta device; angles come from outside."""
        import torch

        with torch.device("meta"):
            tower = self.build_tower(self._vision)
        del tower.rotary_pos_emb
        return tower

    def _no_layers(self) -> dict[str, Any]:
        """Settings of a tower of no layers, beside their number."""
        return {}

    def _check_vision(self) -> None:
        vision = self._vision
        if vision.spatial_merge_size != _MERGE:
            raise UnsupportedError(
                "the tower merges another number of patches than can be carried out",
                expected=f"vision_config.spatial_merge_size {_MERGE}",
                found=vision.spatial_merge_size,
            )
        if not all(
            isinstance(getattr(vision, n), int) for n in ("patch_size", "temporal_patch_size")
        ):
            raise UnsupportedError(
                "patches that are not square are not supported",
                expected="vision_config.patch_size and temporal_patch_size as integers",
                found=f"{vision.patch_size} and {vision.temporal_patch_size}",
            )
        if self.width % (4 * vision.num_heads):
            raise UnsupportedError(
                "the tower's heads cannot be turned by two positions",
                expected="a head dimension divisible by 4",
                found=f"width {self.width} and {vision.num_heads} heads",
            )


def _merger(tower: Any) -> torch.nn.Module:
    import torch

    class Merger(torch.nn.Module):
        """Joined patches to features."""

        def __init__(self) -> None:
            super().__init__()
            self.visual = torch.nn.ModuleDict({"merger": tower.merger})

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            cells = rows.shape[0]
            features: torch.Tensor = self.visual["merger"](rows.reshape(cells * _MERGE**2, -1))
            return features

    return Merger().eval()
