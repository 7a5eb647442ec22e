"""From the rows of a prompt to its first token and the function that feeds the next ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from divprune.runtime.generation.kept_tokens import KeepRule, KeptTokens
from divprune.runtime.generation.merge import splice, splice_planes
from divprune.runtime.generation.prefix import CachedRows, piece_ends

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.backends import Backend, Logits
    from divprune.runtime.generation.embeddings import EmbeddingTable
    from divprune.runtime.generation.rows import PromptRows
    from divprune.runtime.generation.sampling import Sampler
    from divprune.runtime.generation.stopwatch import Stopwatch

__all__ = ["Prefiller", "Started", "Step"]

Step: TypeAlias = "Callable[[int], NDArray[np.float32] | Logits]"


@dataclass(frozen=True)
class Started:
    """A sequence whose prompt is in the KV cache.

    Attributes:
        step: Feeds one token behind the prompt; its logits.
        first_token: What the sampler chose after the prompt.
        kept: Tokens of each picture that the last decoder layer sees.
        cached: Rows of the prompt that were in the cache before.
        selection_ms: Milliseconds of a selection inside the LLM.
    """

    step: Step
    first_token: int
    kept: tuple[KeptTokens, ...]
    cached: int = 0
    selection_ms: float | None = None


class Prefiller:
    """Fills the one KV cache of a backend, and knows what lies in it.

    Args:
        backend: What runs the decoder.
        table: Embeddings of the text's tokens.
        position_axes: Positions of a row: 1, or 3 for time, height and width.
        rows_together: Rows of a prompt that are computed together where that changes their
            values, as 8-bit activations do; 1 where each row stands alone. Only whole pieces are
            taken from the cache then, and no row of an answer, which was computed alone.
    """

    def __init__(
        self, backend: Backend, table: EmbeddingTable, position_axes: int, rows_together: int = 1
    ) -> None:
        self._backend = backend
        self._table = table
        self._axes = position_axes
        self.rows_together = rows_together
        self._cached = CachedRows()
        self._turn = 0

    def forget(self) -> None:
        """Drop what lies in the cache: the next prompt is computed from its first row."""
        self._cached.clear()

    def prefill(
        self,
        rows: PromptRows,
        kept: Sequence[KeptTokens],
        keys: Sequence[tuple[Hashable, ...]],
        sampler: Sampler,
        clock: Stopwatch,
        scope: Hashable,
        turn_ends: Sequence[int] = (),
    ) -> Started:
        """Prefill what the cache lacks.

        Args:
            rows: The pruned prompt.
            kept: Tokens of each picture and video, in the prompt's order.
            keys: What each row depends on; equal keys are equal rows of the cache.
            sampler: Chooses the first token.
            clock: Is told when the merge, the prefill and the choice ended.
            scope: Of the call, for the keys of the answer's rows.
            turn_ends: Rows at which earlier answers begin, where rows are computed together.
        """
        spans = [span.tolist() for span in rows.spans]
        if self.rows_together == 1:
            ends = [len(rows)]  # the backend takes as many at once as suits it
            wanted = self._cached.match(keys, spans)
        else:
            ends = piece_ends(len(rows), turn_ends, self.rows_together)
            wanted = self._cached.match_pieces(keys, spans, ends)
        self._cached.clear()  # until everything has worked
        start, step = self._start(rows.next_position, wanted, scope)
        left = [each for each, span in zip(kept, rows.spans, strict=True) if span[0] >= start]
        is_visual = rows.is_visual[start:]
        features = [each.features for each in left]
        embeds = splice(rows.ids[start:], is_visual, features, self._table)
        planes = splice_planes(is_visual, [each.planes for each in left])
        clock.lap("merge")
        logits = self._forward(embeds, rows.positions, planes, start, ends)
        clock.lap("prefill")
        first = sampler(logits)
        clock.lap("first_sample")
        self._cached.set(keys, ends)
        return Started(step, first, tuple(kept), cached=start)

    def _forward(
        self,
        embeds: NDArray[np.floating],
        positions: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]],
        start: int,
        ends: Sequence[int],
    ) -> NDArray[np.float32] | Logits:
        """Logits behind the last of the rows from ``start`` on, a call for each piece."""
        ends = [end for end in ends if end > start]
        logits: NDArray[np.float32] | Logits = np.empty(0, np.float32)
        begin = start
        for end in ends:
            whole = len(ends) == 1  # may lie on a device, and is not cut then
            part = slice(begin - start, end - start)
            logits = self._backend.forward(
                embeds if whole else embeds[:, part],
                _batched(positions[:, begin:end]),
                planes if whole else tuple(plane[:, part] for plane in planes),
            )
            begin = end
        return logits

    def prefill_pruned(
        self,
        rows: PromptRows,
        kept: Sequence[KeptTokens],
        rule: KeepRule,
        sampler: Sampler,
        clock: Stopwatch,
    ) -> Started:
        """Prefill through a selection inside the LLM, which depends on the question.

        So nothing of an earlier prompt can be taken from the caches behind it.
        """
        self._cached.clear()
        _, step = self._start(rows.next_position, 0, None)
        features = [each.features for each in kept]
        embeds = splice(rows.ids, rows.is_visual, features, self._table)
        planes = splice_planes(rows.is_visual, [each.planes for each in kept])
        clock.lap("merge")
        totals = [each.num_image_tokens for each in kept]
        counts = [rule.count(total) for total in totals]
        position_ids = _batched(rows.positions)
        if counts == totals:
            logits, selection_ms = self._backend.forward(embeds, position_ids, planes), None
        else:
            pruned = self._backend.prefill_pruned(embeds, position_ids, rows.spans, counts, planes)
            logits, selection_ms = pruned.logits, pruned.selection_ms
            kept = [_chosen(all_, order) for all_, order in zip(kept, pruned.orders, strict=True)]
        clock.lap("prefill")
        first = sampler(logits)
        clock.lap("first_sample")
        return Started(step, first, tuple(kept), selection_ms=selection_ms)

    def _start(self, next_position: int, wanted: int, scope: Hashable) -> tuple[int, Step]:
        """Keep the first rows of the cache; how many were kept, and what feeds a token.

        The function feeds one token of the new sequence behind its prompt.
        """
        start = self._backend.reset(wanted)
        self._turn += 1
        turn, positions = self._turn, count_from(next_position)
        axes = self._axes

        def step(token: int) -> NDArray[np.float32] | Logits:
            if turn != self._turn:
                raise RuntimeError("this pipeline has started another generation since")
            embeds = self._table.rows([token])[np.newaxis]
            position = next(positions)
            logits = self._backend.forward(embeds, _batched(np.full((axes, 1), position, np.int64)))
            if self.rows_together == 1:
                self._cached.append(token, (position,) * axes, scope)
            return logits

        return start, step


def _batched(positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions [axes, S] as the LLM graphs take them: [1, S], or [3, 1, S]."""
    positions = np.ascontiguousarray(positions)
    return positions if len(positions) == 1 else positions[:, np.newaxis]


def _chosen(tokens: KeptTokens, order: NDArray[np.int64]) -> KeptTokens:
    """What is left of a picture's tokens behind a selection inside the LLM."""
    indices = np.sort(order)
    planes = tuple(plane[indices] for plane in tokens.planes)
    return KeptTokens(indices, tokens.features[indices], tokens.num_image_tokens, order, planes)
