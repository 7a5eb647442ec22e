"""Questions as files for LLaVA's own code spell them."""

from __future__ import annotations

import re

__all__ = ["without_placeholder"]

_PLACEHOLDER = re.compile(r"^\s*<image>\s*|\s*<image>\s*$")


def without_placeholder(question: str) -> str:
    """The question less the ``<image>`` at its start or end that stands for the picture."""
    return _PLACEHOLDER.sub("", question).strip() or question
