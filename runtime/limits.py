"""Whether a prompt fits, and how long its answer may become."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from divprune.runtime.errors import OptionError, PromptError

if TYPE_CHECKING:
    from divprune.runtime.manifest import Manifest

__all__ = ["answer_limit", "validate_max_new_tokens"]

log = logging.getLogger(__name__)

_FIX = "a smaller --keep, a shorter prompt, or export again with a larger --max-seq-len"


def validate_max_new_tokens(max_new_tokens: int) -> int:
    """Check that at least one token is asked for.

    Raises:
        OptionError: if not.
    """
    if max_new_tokens < 1:
        raise OptionError(
            "--max-new-tokens must be at least 1", expected="1 or more", found=max_new_tokens
        )
    return max_new_tokens


def answer_limit(
    manifest: Manifest, *, max_new_tokens: int, prompt_tokens: int, num_images: int, num_kept: int
) -> int:
    """Largest number of new tokens: ``max_new_tokens``, or less where the room ends before.

    Args:
        manifest: Limits of the engine directory.
        max_new_tokens: What the user asked for.
        prompt_tokens: Rows of the pruned prompt.
        num_images: Pictures in it.
        num_kept: Tokens of each picture in it.

    Raises:
        PromptError: if the prompt is longer than prefill takes, or leaves no room at all.
    """
    found = f"{prompt_tokens} tokens, {num_images * num_kept} of them image tokens"
    if prompt_tokens > manifest.max_prefill_len:
        raise PromptError(
            "the prompt is too long",
            expected=f"at most {manifest.max_prefill_len} tokens",
            found=found,
            fix=_FIX,
        )
    room = manifest.max_seq_len - prompt_tokens
    if manifest.selector.positions == "original":
        removed = num_images * (manifest.selector.num_image_tokens - num_kept)
        room = min(room, manifest.model.max_position_embeddings - prompt_tokens - removed)
    if room < 1:
        raise PromptError(
            "the prompt leaves no room for an answer",
            expected=f"at most {prompt_tokens + room - 1} tokens",
            found=found,
            fix=_FIX,
        )
    if room < max_new_tokens:
        log.warning(
            "the answer will stop after %d of %d tokens: the prompt takes %d of %d",
            room,
            max_new_tokens,
            prompt_tokens,
            prompt_tokens + room,
        )
    return min(max_new_tokens, room)
