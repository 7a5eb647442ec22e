"""Which sessions of an engine directory are in memory: all of them, or vision and LLM in turn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from divprune.runtime.memory import release_freed_memory

if TYPE_CHECKING:
    from divprune.runtime.backends.onnxruntime.cache import KVCache
    from divprune.runtime.backends.onnxruntime.decoder import DecoderSession
    from divprune.runtime.backends.onnxruntime.recorded import RecordedDecoder
    from divprune.runtime.backends.onnxruntime.vision import Vision

__all__ = ["Decoder", "Residents"]

log = logging.getLogger(__name__)

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decoder:
    """The decoder's graphs with their caches.

    Attributes:
        parts: The decoder, or a front and a back.
        prefill: What a prompt goes through, if the export has a graph of its own for that.
        selection: The graph that chooses between front and back, if there is one.
        recorded: The one of ``parts``, where its steps are recorded.
    """

    parts: Sequence[DecoderSession]
    prefill: DecoderSession | None
    selection: Any | None
    recorded: RecordedDecoder | None = None


class Residents:
    """Opens sessions when they are needed; closes the others first unless all stay together.

    A session that is closed gives its memory back to the system, with it the KV cache.

    Args:
        open_vision: Opens the vision graph.
        open_full: Opens the vision graph of the full picture, which few runs need.
        open_decoder: Opens the decoder's graphs and allocates the caches, or takes one given.
        together: Keep what was opened; vision and decoder are opened now.

    Attributes:
        together: Whether vision and decoder are in memory at the same time.
    """

    def __init__(
        self,
        open_vision: Callable[[], Vision],
        open_full: Callable[[], Any],
        open_decoder: Callable[..., Decoder],
        *,
        together: bool,
    ) -> None:
        self._open_vision, self._open_full = open_vision, open_full
        self._open_decoder = open_decoder
        self.together = together
        self._vision: Vision | None = None
        self._full: Any = None
        self._decoder: Decoder | None = None
        if together:
            # The larger one first: what loading needs on top of the weights is gone by then.
            self._decoder = open_decoder()
        self._vision = open_vision()

    def vision(self) -> Vision:
        """The vision graph."""
        if self._vision is None:
            self._close_decoder()
            self._vision = _timed("vision", self._open_vision)
        return self._vision

    def full(self) -> Any:
        """The session of the full picture's vision graph."""
        if self._full is None:
            self._close_decoder()
            self._full = _timed("full vision", self._open_full)
        return self._full

    def start_sequence(self) -> Decoder:
        """The decoder, opened if it is not."""
        if self._decoder is None:
            self._vision = self._full = None
            release_freed_memory()
            self._decoder = _timed("LLM", self._open_decoder)
        return self._decoder

    def decoder(self) -> Decoder:
        """The decoder with the sequence that was started.

        Raises:
            RuntimeError: if it was closed since, or no sequence was started.
        """
        if self._decoder is None:
            raise RuntimeError(
                "there is no sequence: with --residency sequential a picture that is encoded "
                "ends the one before"
            )
        return self._decoder

    def reopen_decoder(self, cache: KVCache) -> None:
        """Open the decoder anew for the sequence that a cache holds."""
        self._decoder = None
        self._decoder = _timed("LLM", partial(self._open_decoder, cache))

    def _close_decoder(self) -> None:
        if not self.together and self._decoder is not None:
            self._decoder = None
            release_freed_memory()


def _timed(what: str, open_it: Callable[[], _T]) -> _T:
    start = perf_counter()
    opened = open_it()
    log.debug("opened %s in %.1f s", what, perf_counter() - start)
    return opened
