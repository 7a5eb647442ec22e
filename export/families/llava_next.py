"""LLaVA-1.6 (LLaVA-NeXT): a CLIP tower over tiles, a projector, a llama or mistral decoder."""

from __future__ import annotations

from typing import ClassVar

from divprune.export.families._anyres_base import AnyresBase

__all__ = ["FAMILY", "LlavaNextFamily"]


class LlavaNextFamily(AnyresBase):
    """``LlavaNextForConditionalGeneration`` as transformers saves it."""

    name: ClassVar[str] = "llava_next"
    model_class: ClassVar[str] = "LlavaNextForConditionalGeneration"
    known_as: ClassVar[str] = "LLaVA-1.6"


FAMILY = LlavaNextFamily
