"""One answer in the making: an iterator of text that ends with a result."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from divprune.runtime.generation.result import (
    FinishReason,
    GenerationResult,
    ImageResult,
    Memory,
    Timings,
)
from divprune.runtime.generation.stop_text import StopText
from divprune.runtime.memory import peak_rss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from divprune.runtime.backends import Logits
    from divprune.runtime.generation.sampling import Sampler
    from divprune.runtime.inputs.tokenization import TextStream

__all__ = ["Generation", "InterruptedAnswerError", "Prefill"]


class InterruptedAnswerError(Exception):
    """Nobody wants the answer any more: raised between two steps of its making."""


@dataclass(frozen=True)
class Prefill:
    """What is known once the first token is chosen.

    Attributes:
        images: Pruning of each picture.
        prompt_tokens: Rows of the pruned prompt.
        cached_tokens: Rows of it that the KV cache held already.
        first_token: The token chosen after them.
        laps: Milliseconds of preprocess, vision, merge, prefill and first_sample.
        selection_ms: What a selection inside the language model took of prefill.
        kv_cache: Bytes of the KV cache.
        backend: Name of the backend.
    """

    images: tuple[ImageResult, ...]
    prompt_tokens: int
    cached_tokens: int
    first_token: int
    laps: dict[str, float]
    selection_ms: float | None
    kv_cache: int
    backend: str


class Generation(Iterator[str]):
    """Pieces of text as they are made; the first token is chosen before it is returned.

    Args:
        prefill: The state after the first token.
        step: Feeds a token and returns the logits [V] of the next.
        sampler: Chooses a token from logits.
        stream: Turns tokens into pieces of text.
        eos_token_ids: Tokens that end the answer.
        limit: Largest number of new tokens.
        stop: Texts that end the answer; they are left out of it.
        interrupted: Asked before each token is fed; once it says so, iterating raises
            ``InterruptedAnswerError``.
    """

    def __init__(
        self,
        prefill: Prefill,
        *,
        step: Callable[[int], NDArray[np.float32] | Logits],
        sampler: Sampler,
        stream: TextStream,
        eos_token_ids: tuple[int, ...],
        limit: int,
        stop: Sequence[str] = (),
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._prefill = prefill
        self._step = step
        self._sampler = sampler
        self._stream = stream
        self._eos_token_ids = eos_token_ids
        self._limit = limit
        self._stop = StopText(stop)
        self._interrupted = interrupted
        self._token_ids: list[int] = []
        self._text: list[str] = []
        self._decode_ms: list[float] = []
        self._result: GenerationResult | None = None
        self._pieces = self._run()

    def __next__(self) -> str:
        """The next piece of text, never empty and never half a character."""
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    @property
    def result(self) -> GenerationResult:
        """The result; what has not been iterated yet is generated first."""
        for _ in self:
            pass
        if self._result is None:
            raise RuntimeError("the generation was broken off by an error; it has no result")
        return self._result

    @property
    def prefill(self) -> Prefill:
        """What is known since the first token."""
        return self._prefill

    def _run(self) -> Generator[str, None, None]:
        token = self._prefill.first_token
        while True:
            self._token_ids.append(token)
            if piece := self._stop.push(self._stream.push(token)):
                yield piece
            if self._stop.found or token in self._eos_token_ids:
                break
            if len(self._token_ids) >= self._limit:
                break
            if self._interrupted():
                raise InterruptedAnswerError
            token = self._decode(token)
        if piece := self._stop.push(self._stream.finish()) + self._stop.finish():
            yield piece
        stopped = self._stop.found or token in self._eos_token_ids
        self._result = self._finish("stop" if stopped else "length")

    def _decode(self, token: int) -> int:
        start = perf_counter()
        chosen = self._sampler(self._step(token))
        self._decode_ms.append((perf_counter() - start) * 1000)
        return chosen

    def _finish(self, reason: FinishReason) -> GenerationResult:
        prefill = self._prefill
        return GenerationResult(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            images=prefill.images,
            prompt_tokens=prefill.prompt_tokens,
            cached_tokens=prefill.cached_tokens,
            finish_reason=reason,
            timings=Timings(
                **prefill.laps, decode=tuple(self._decode_ms), selection=prefill.selection_ms
            ),
            memory=Memory(peak_rss=peak_rss(), kv_cache=prefill.kv_cache, peak_device=None),
            backend=prefill.backend,
        )
