"""LLaVA-1.6 (LLaVA-NeXT): a CLIP tower over tiles, a projector, a llama or mistral decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from divprune.export.families._anyres_base import AnyresBase
from divprune.export.families._llava_base import check_architecture

__all__ = ["FAMILY", "LlavaNextFamily"]


class LlavaNextFamily(AnyresBase):
    """``LlavaNextForConditionalGeneration`` as transformers saves it."""

    name: ClassVar[str] = "llava_next"
    model_class: ClassVar[str] = "LlavaNextForConditionalGeneration"

    @staticmethod
    def check(content: Mapping[str, Any]) -> None:
        """Check ``config.json`` before transformers reads it.

        Raises:
            UnsupportedError: naming the architecture.
        """
        check_architecture(
            content, ("LlavaNextForConditionalGeneration",), "LLaVA-1.6", "llava-1.6-vicuna-7b"
        )


FAMILY = LlavaNextFamily
