"""What a generation leaves behind: text, kept tokens, timings and memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from divprune.runtime.directory.keep import describe_keep

__all__ = ["FinishReason", "GenerationResult", "ImageResult", "Memory", "Timings"]

FinishReason = Literal["stop", "length"]
_NO_PICTURE: dict[str, Any] = {"kept_indices": [], "num_image_tokens": 0, "num_kept": 0}


@dataclass(frozen=True, slots=True)
class ImageResult:
    """Pruning of one picture.

    Attributes:
        kept_indices: Kept tokens ascending, numbered in the raster order of all tokens.
        num_image_tokens: N, tokens before pruning.
        selection_order: The kept tokens in the order in which they were selected; None where
            all tokens are kept without a selection.
        kind: ``image`` or ``video``.
        cover: The least similarity of a dropped token to its most similar kept one, where the
            selector tells it.
        note: What was done to it, such as that it was scaled down; or None.
        num_media: Pictures in the request: some families prepare several differently.
    """

    kept_indices: tuple[int, ...]
    num_image_tokens: int
    selection_order: tuple[int, ...] | None = None
    kind: str = "image"
    cover: float | None = None
    note: str | None = None
    num_media: int = 1

    @property
    def num_kept(self) -> int:
        """Tokens that the language model saw, or its layers behind the selection."""
        return len(self.kept_indices)

    def to_dict(self) -> dict[str, Any]:
        """Fields as ``--json`` prints them."""
        return {
            "kept_indices": list(self.kept_indices),
            "num_image_tokens": self.num_image_tokens,
            "num_kept": self.num_kept,
            "kind": self.kind,
            "cover": None if self.cover is None else round(self.cover, 6),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds of wall time, starting with decoded pictures in memory.

    Attributes:
        preprocess: Pictures to pixel values, prompt to token ids.
        vision: Vision graph, selection included, over all pictures.
        merge: Embedding the prompt and placing the kept tokens.
        prefill: Language model over the whole prompt, a selection inside it included.
        first_sample: Choosing the first token.
        decode: Each token after the first: embedding, language model and sampling.
        selection: The part of prefill that a selection inside the language model took; None
            where nothing was selected there.
    """

    preprocess: float
    vision: float
    merge: float
    prefill: float
    first_sample: float
    decode: tuple[float, ...]
    selection: float | None = None

    @property
    def ttft(self) -> float:
        """Time to first token: everything up to and including its choice."""
        return self.preprocess + self.vision + self.merge + self.prefill + self.first_sample

    @property
    def decode_per_token(self) -> float | None:
        """Mean over the tokens after the first; None where there is only one token."""
        return sum(self.decode) / len(self.decode) if self.decode else None

    @property
    def decode_tokens_per_second(self) -> float | None:
        """Rate over the tokens after the first; None where there is only one token."""
        return 1000 / self.decode_per_token if self.decode_per_token else None

    def to_dict(self) -> dict[str, float | None]:
        """Fields as ``--json`` prints them, to the microsecond."""
        values = {
            "preprocess": self.preprocess,
            "vision": self.vision,
            "merge": self.merge,
            "prefill": self.prefill,
            "selection": self.selection,
            "first_sample": self.first_sample,
            "ttft": self.ttft,
            "decode_per_token": self.decode_per_token,
        }
        return {name: None if ms is None else round(ms, 3) for name, ms in values.items()}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes: largest resident set of the process, KV cache, and device memory if any."""

    peak_rss: int | None
    kv_cache: int
    peak_device: int | None

    def to_dict(self) -> dict[str, int | None]:
        """Fields as ``--json`` prints them."""
        return {
            "peak_rss": self.peak_rss,
            "kv_cache": self.kv_cache,
            "peak_device": self.peak_device,
        }


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """One finished answer.

    Attributes:
        text: The answer, without special tokens.
        token_ids: New tokens, a final end-of-sequence token included.
        images: One record for each picture, in the order of the prompt.
        prompt_tokens: Rows of the pruned prompt.
        cached_tokens: Rows of it that the KV cache held from an earlier prompt; prefill processed
            the others.
        finish_reason: ``stop`` at an end-of-sequence token, ``length`` at the limit.
        timings: Where the time went.
        memory: Where the memory went.
        backend: Library, version and device.
    """

    text: str
    token_ids: tuple[int, ...]
    images: tuple[ImageResult, ...]
    prompt_tokens: int
    cached_tokens: int
    finish_reason: FinishReason
    timings: Timings
    memory: Memory
    backend: str

    def describe_keep(self) -> str:
        """The sentence every report uses, over all pictures."""
        if not self.images:
            return "no picture"
        kept = sum(image.num_kept for image in self.images)
        sentence = describe_keep(kept, sum(image.num_image_tokens for image in self.images))
        return sentence if len(self.images) == 1 else f"{sentence} in {len(self.images)} images"

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints; the first picture is mirrored at the top."""
        first = self.images[0].to_dict() if self.images else _NO_PICTURE
        return {
            "text": self.text,
            "token_ids": list(self.token_ids),
            **{name: first[name] for name in _NO_PICTURE},
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "finish_reason": self.finish_reason,
            "timings_ms": self.timings.to_dict(),
            "memory_bytes": self.memory.to_dict(),
            "backend": self.backend,
            "images": [image.to_dict() for image in self.images],
        }
