"""Stands in for ``Pipeline.chat`` until it is there."""

from __future__ import annotations

from typing import Any


def chat(
    pipeline: Any, messages: Any, *, keep: Any, max_new_tokens: int, sampling: Any, scope: str
) -> Any:
    """Flatten a conversation into one question."""
    images = [p["image"] for m in messages for p in m["content"] if p["type"] == "image"]
    text = " ".join(p["text"] for m in messages for p in m["content"] if p["type"] == "text")
    return pipeline.generate(
        images, text, keep=keep, max_new_tokens=max_new_tokens, sampling=sampling
    )
