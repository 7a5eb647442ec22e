"""Answers as OpenAI's API has them: whole, or as the events of a stream."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.serving.errors import ApiError

__all__ = ["DONE", "KEEP_ALIVE", "AnswerFormat", "describe_usage", "event"]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


@dataclass(frozen=True)
class AnswerFormat:
    """Writes one answer.

    Attributes:
        model: Name of the model.
        fingerprint: Of engine directory and backend: equal seeds give equal answers under it.
        include_usage: Whether a stream says ``usage``.
    """

    model: str
    fingerprint: str
    include_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, result: GenerationResult, extra: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        message = {"role": "assistant", "content": result.text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": result.finish_reason,
            "logprobs": None,
        }
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": describe_usage(result),
            "divprune": extra,
        }

    def first(self, extra: dict[str, Any]) -> bytes:
        """The event that comes with the first token."""
        delta = {"role": "assistant", "content": ""}
        return event({**self._chunk(delta, None), "divprune": extra})

    def pieces(self, pieces: list[str]) -> bytes:
        """An event for each piece of text."""
        # All but the text is the same every time; a token may take no longer than a millisecond.
        before, after = self._frame
        return b"".join(before + json.dumps(piece).encode() + after for piece in pieces)

    def last(self, result: GenerationResult, extra: dict[str, Any]) -> bytes:
        """The events after the last piece."""
        end = event({**self._chunk({}, result.finish_reason), "divprune": extra})
        if not self.include_usage:
            return end + DONE
        usage = {**self._head("chat.completion.chunk"), "choices": []}
        return end + event({**usage, "usage": describe_usage(result)}) + DONE

    def failed(self, error: ApiError) -> bytes:
        """The events of an answer that breaks off."""
        return event(error.to_dict()) + DONE

    @property
    def _frame(self) -> tuple[bytes, bytes]:
        mark = "\0"
        before, after = event(self._chunk({"content": mark}, None)).split(json.dumps(mark).encode())
        return before, after

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.include_usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


def describe_usage(result: GenerationResult) -> dict[str, Any]:
    """Tokens as prefilled: what was pruned away is no part of the prompt, but is told."""
    kept = sum(image.num_kept for image in result.images)
    total = sum(image.num_image_tokens for image in result.images)
    return {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": len(result.token_ids),
        "total_tokens": result.prompt_tokens + len(result.token_ids),
        "prompt_tokens_details": {
            "cached_tokens": result.cached_tokens,
            "image_tokens": kept,
            "text_tokens": result.prompt_tokens - kept,
            "pruned_image_tokens": total - kept,
        },
    }
