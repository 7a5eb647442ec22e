"""Idefics3 and the first SmolVLM: SmolVLM2's picture path under another name, without videos."""

from __future__ import annotations

from typing import ClassVar

from divprune.export.families.smolvlm import SmolVLMFamily

__all__ = ["FAMILY", "Idefics3Family"]


class Idefics3Family(SmolVLMFamily):
    """``Idefics3ForConditionalGeneration``."""

    name: ClassVar[str] = "idefics3"
    architecture: ClassVar[str] = "Idefics3ForConditionalGeneration"
    takes_videos: ClassVar[bool] = False


FAMILY = Idefics3Family
