"""What the KV cache holds, and how much of the next prompt it can serve."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.generation.rows import PromptRows

__all__ = ["CachedRows", "piece_ends", "row_keys"]

# A row of the cache depends on what it is, where it stands, and on the rows before it.
RowKey = tuple[Hashable, ...]


def row_keys(
    rows: PromptRows,
    digests: Sequence[bytes],
    kept: Sequence[Sequence[int]],
    scope: Hashable = None,
) -> list[RowKey]:
    """One key for each row of a prompt: equal where key and value in the cache are equal.

    Args:
        rows: The pruned prompt.
        digests: Of each picture and video.
        kept: Its kept tokens, ascending.
        scope: Rows are shared only between prompts of the same scope.
    """
    positions = rows.positions.T.tolist()
    what: list[tuple[Hashable, Hashable]] = [(scope, token) for token in rows.ids.tolist()]
    for digest, tokens, span in zip(digests, kept, rows.spans, strict=True):
        for row, token in zip(span.tolist(), tokens, strict=True):
            what[row] = (digest, token)
    return [(*each, *place) for each, place in zip(what, positions, strict=True)]


def piece_ends(num_rows: int, turn_ends: Sequence[int], rows_together: int) -> list[int]:
    """Where the pieces end in which the rows of a prompt are computed, ascending.

    A piece has ``rows_together`` rows at most. One ends wherever an earlier answer begins, so that
    a conversation is computed in the same pieces whether its turns come one by one or all at once.

    Args:
        num_rows: Of the prompt.
        turn_ends: Rows at which answers begin that are part of the prompt, ascending.
        rows_together: Rows of a whole piece.
    """
    ends, start = [], 0
    for end in (*turn_ends, num_rows):
        ends += [*range(start + rows_together, end, rows_together), end]
        start = end
    return ends


class CachedRows:
    """The rows that a backend's cache holds, in order."""

    def __init__(self) -> None:
        self._keys: list[RowKey] = []
        self._ends: list[int] = []

    def match(self, keys: Sequence[RowKey], spans: Sequence[Sequence[int]]) -> int:
        """How many rows of a prompt the cache holds already.

        At least one row is left to compute, for its logits, and a picture is taken whole or
        not at all.
        """
        count = self._num_equal(keys)
        whole = _before_pictures(count, spans)
        while whole < count:
            count, whole = whole, _before_pictures(whole, spans)
        return count

    def match_pieces(
        self, keys: Sequence[RowKey], spans: Sequence[Sequence[int]], ends: Sequence[int]
    ) -> int:
        """The same where a row's numbers depend on the piece in which it was computed.

        Args:
            keys: One for each row.
            spans: Rows of each picture.
            ends: Where the prompt's pieces end.
        """
        count, whole = self._num_equal(keys), 0
        for end, cached in zip(ends, self._ends, strict=False):
            if end != cached or end > count:
                break
            if _before_pictures(end, spans) == end:
                whole = end
        return whole

    def clear(self) -> None:
        """Nothing can be reused: the cache is empty, or in an unknown state."""
        self._keys, self._ends = [], []

    def set(self, keys: Sequence[RowKey], ends: Sequence[int] = ()) -> None:
        """The cache holds exactly these rows, computed in pieces that end there."""
        self._keys, self._ends = list(keys), list(ends)

    def append(self, token: int, position: Sequence[int], scope: Hashable = None) -> None:
        """One more row of text."""
        self._keys.append((scope, token, *position))

    def _num_equal(self, keys: Sequence[RowKey]) -> int:
        most = max(0, min(len(self._keys), len(keys) - 1))
        return next((i for i in range(most) if keys[i] != self._keys[i]), most)


def _before_pictures(count: int, spans: Sequence[Sequence[int]]) -> int:
    """At most ``count`` rows, without a part of a picture."""
    for span in spans:
        if span[0] < count <= span[-1]:
            count = int(span[0])
    return count
