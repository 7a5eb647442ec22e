"""What the KV cache holds, and how much of the next prompt it can serve."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.generation.rows import PromptRows

__all__ = ["CachedRows", "row_keys"]

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


class CachedRows:
    """The rows that a backend's cache holds, in order."""

    def __init__(self) -> None:
        self._keys: list[RowKey] = []

    def match(
        self, keys: Sequence[RowKey], spans: Sequence[Sequence[int]], rows_together: int = 1
    ) -> int:
        """How many rows of a prompt the cache holds already.

        At least one row is left to compute, for its logits, and a picture is taken whole or
        not at all. So are pieces of ``rows_together`` rows, where more than one are computed
        together; two rows are left then, since a single one is computed otherwise.
        """
        most = max(0, min(len(self._keys), len(keys) - (1 if rows_together == 1 else 2)))
        count = next((i for i in range(most) if keys[i] != self._keys[i]), most)
        whole = _whole(count, spans, rows_together)
        while whole < count:
            count, whole = whole, _whole(whole, spans, rows_together)
        return count

    def clear(self) -> None:
        """Nothing can be reused: the cache is empty, or in an unknown state."""
        self._keys = []

    def set(self, keys: Sequence[RowKey]) -> None:
        """The cache holds exactly these rows."""
        self._keys = list(keys)

    def append(self, token: int, position: Sequence[int], scope: Hashable = None) -> None:
        """One more row of text."""
        self._keys.append((scope, token, *position))


def _whole(count: int, spans: Sequence[Sequence[int]], rows_together: int) -> int:
    """At most ``count`` rows, without a part of a piece and without a part of a picture."""
    count -= count % rows_together
    for span in spans:
        if span[0] < count <= span[-1]:
            count = int(span[0])
    return count
