"""LLaVA-OneVision: a SigLIP tower over tiles or frames, a projector, a qwen2 decoder."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.export.families._anyres_base import AnyresBase
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILY", "LlavaOnevisionFamily"]

_ANYRES = re.compile(r"anyres_max_([1-9][0-9]*)")


class LlavaOnevisionFamily(AnyresBase):
    """``LlavaOnevisionForConditionalGeneration`` as transformers saves it."""

    name: ClassVar[str] = "llava_onevision"
    model_class: ClassVar[str] = "LlavaOnevisionForConditionalGeneration"
    known_as: ClassVar[str] = "LLaVA-OneVision"
    taps: ClassVar[int] = 4

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        found = self._config.vision_aspect_ratio
        match = _ANYRES.fullmatch(str(found))
        if match is None:
            raise UnsupportedError(
                "pictures are cut in a way that cannot be exported yet",
                expected="vision_aspect_ratio anyres_max_N",
                found=found,
            )
        self._max_tiles = int(match[1])

    def facts(self) -> dict[str, Any]:
        """As the others, and above how many tiles' patches a grid is shrunk."""
        return {**super().facts(), "max_tiles": self._max_tiles}


FAMILY = LlavaOnevisionFamily
