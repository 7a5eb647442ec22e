"""Limits: length of the cache, whether a prompt fits, length of the answer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from divprune.runtime.errors import OptionError, PromptError, UnsupportedError

if TYPE_CHECKING:
    from divprune.runtime.directory.manifest import Manifest

__all__ = [
    "answer_limit",
    "default_max_seq_len",
    "shorten_cache",
    "validate_max_new_tokens",
]

log = logging.getLogger(__name__)

_DEFAULT_MAX_SEQ_LEN = 2048
_TEXT_ROOM = 512  # beside the largest picture, where it alone would fill the default


def default_max_seq_len(num_image_tokens: int, model_limit: int) -> int:
    """Cache slots of an export that says nothing else.

    Args:
        num_image_tokens: N of the largest picture, which fits with a prompt of some length.
        model_limit: ``max_position_embeddings``.
    """
    return min(max(_DEFAULT_MAX_SEQ_LEN, num_image_tokens + _TEXT_ROOM), model_limit)


def shorten_cache(manifest: Manifest, max_seq_len: int | None) -> Manifest:
    """The manifest with the limits of a run whose KV cache has ``max_seq_len`` slots.

    Args:
        manifest: As exported.
        max_seq_len: Prompt and answer together; None leaves what was exported.

    Raises:
        OptionError: for a length that this directory was not exported for.
        UnsupportedError: if its graphs have a cache of fixed length.
    """
    exported = manifest.max_seq_len
    if max_seq_len is None or max_seq_len == exported:
        return manifest
    # Inside the LLM every visual token enters; elsewhere --keep may leave one of them.
    lowest = 2 + (_fewest_tokens(manifest) if manifest.selector.inside_llm else 1)
    if max_seq_len < lowest:
        raise OptionError(
            "--max-seq-len leaves no room for a picture, a prompt and an answer",
            expected=f"{lowest} to {exported}",
            found=max_seq_len,
        )
    if max_seq_len > exported:
        raise OptionError(
            "--max-seq-len is larger than what this engine directory was exported with",
            expected=f"at most {exported}",
            found=max_seq_len,
            fix=f"leave it out, or export again with --max-seq-len {max_seq_len}",
        )
    if not manifest.has_open_cache_length:
        raise UnsupportedError(
            f"the graphs of dialect {manifest.dialect!r} have a KV cache of fixed length",
            expected=f"--max-seq-len {exported}, or none",
            found=max_seq_len,
            fix=f"leave it out, or export again with --max-seq-len {max_seq_len}",
        )
    return replace(
        manifest,
        max_seq_len=max_seq_len,
        max_prefill_len=min(manifest.max_prefill_len, max_seq_len - 1),
    )


def _fewest_tokens(manifest: Manifest) -> int:
    """Visual tokens of the smallest picture."""
    if manifest.has_variable_tokens:
        return manifest.dims["tokens"].minimum
    return manifest.selector.num_image_tokens


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
    manifest: Manifest,
    *,
    max_new_tokens: int,
    prompt_tokens: int,
    num_visual: int,
    next_position: int,
) -> int:
    """Largest number of new tokens: ``max_new_tokens``, or less where the room ends before.

    Args:
        manifest: Limits of the engine directory.
        max_new_tokens: What the user asked for.
        prompt_tokens: Rows of the pruned prompt.
        num_visual: Visual tokens among them.
        next_position: Of the first new token, which may lie behind the number of rows.

    Raises:
        PromptError: if the prompt is longer than prefill takes, or leaves no room at all.
    """
    found = f"{prompt_tokens} tokens, {num_visual} of them image tokens"
    if prompt_tokens > manifest.max_prefill_len:
        raise PromptError(
            "the prompt is too long",
            expected=f"at most {manifest.max_prefill_len} tokens",
            found=found,
            fix=_ways_out(manifest),
        )
    room = min(
        manifest.max_seq_len - prompt_tokens,
        manifest.model.max_position_embeddings - next_position,
    )
    if room < 1:
        raise PromptError(
            "the prompt leaves no room for an answer",
            expected=f"at most {prompt_tokens + room - 1} tokens",
            found=found,
            fix=_ways_out(manifest),
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


def _ways_out(manifest: Manifest) -> str:
    longer = "export again with a larger --max-seq-len"
    if manifest.has_open_cache_length:
        longer = f"a larger --max-seq-len (beyond what was exported, {longer})"
    return f"a smaller --keep, a shorter prompt, or {longer}"
