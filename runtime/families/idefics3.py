"""Idefics3 and the first SmolVLM: SmolVLM2's pictures under another name, and no videos."""

from __future__ import annotations

from typing import ClassVar

from divprune.runtime.families.smolvlm import SmolVLM

__all__ = ["FAMILY", "Idefics3"]


class Idefics3(SmolVLM):
    """Idefics3 as one checkpoint has it."""

    name: ClassVar[str] = "idefics3"


FAMILY = Idefics3
