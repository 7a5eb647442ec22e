"""LLaVA-NeXT-Video: LLaVA-1.6 with frames of videos, pooled in front of the projector."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from divprune.export.families._anyres_base import AnyresBase
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILY", "LlavaNextVideoFamily"]


class LlavaNextVideoFamily(AnyresBase):
    """``LlavaNextVideoForConditionalGeneration`` as transformers saves it."""

    name: ClassVar[str] = "llava_next_video"
    model_class: ClassVar[str] = "LlavaNextVideoForConditionalGeneration"
    known_as: ClassVar[str] = "LLaVA-NeXT-Video"
    taps: ClassVar[int] = 4
    gathers_first: ClassVar[bool] = True

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        pooling = (self._config.spatial_pool_mode, self._config.spatial_pool_stride)
        if pooling != ("average", 2):
            raise UnsupportedError(
                "frames are pooled in a way that cannot be exported yet",
                expected="spatial_pool_mode average, spatial_pool_stride 2",
                found=f"{pooling[0]}, {pooling[1]}",
            )


FAMILY = LlavaNextVideoFamily
