"""LLaVA-NeXT-Video: LLaVA-1.6 with frames of videos, pooled in front of the projector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._anyres_base import AnyresBase
from divprune.export.families._llava_base import check_architecture
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILY", "LlavaNextVideoFamily"]


class LlavaNextVideoFamily(AnyresBase):
    """``LlavaNextVideoForConditionalGeneration`` as transformers saves it."""

    name: ClassVar[str] = "llava_next_video"
    model_class: ClassVar[str] = "LlavaNextVideoForConditionalGeneration"
    taps: ClassVar[int] = 4
    gathers_first: ClassVar[bool] = True

    def __init__(self, config: PreTrainedConfig) -> None:
        """Bind to a config.

        Raises:
            UnsupportedError: naming the first setting that cannot be carried out.
        """
        super().__init__(config)
        pooling = (self._config.spatial_pool_mode, self._config.spatial_pool_stride)
        if pooling != ("average", 2):
            raise UnsupportedError(
                "frames are pooled in a way that cannot be exported yet",
                expected="spatial_pool_mode average, spatial_pool_stride 2",
                found=f"{pooling[0]}, {pooling[1]}",
            )

    @staticmethod
    def check(content: Mapping[str, Any]) -> None:
        """Check ``config.json`` before transformers reads it.

        Raises:
            UnsupportedError: naming the architecture.
        """
        check_architecture(
            content,
            ("LlavaNextVideoForConditionalGeneration",),
            "LLaVA-NeXT-Video",
            "llava-next-video-7b",
        )


FAMILY = LlavaNextVideoFamily
