"""The rows of a prompt that prefill sees: text, and the visual tokens that stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.inputs.prompt import staying_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.inputs.prompt import Prompt

__all__ = ["PromptRows", "prune_prompt"]


@dataclass(frozen=True)
class PromptRows:
    """S rows of a pruned prompt.

    Attributes:
        ids: int64 [S].
        is_visual: bool [S].
        spans: For each picture and video the rows int64 [K] of its kept tokens, ascending.
        positions: int64 [axes, S], for the rotary embedding.
        next_position: Of the first token of the answer.
        sources: int64 [S], the row of the whole prompt that each one is, ascending.
    """

    ids: NDArray[np.int64]
    is_visual: NDArray[np.bool_]
    spans: tuple[NDArray[np.int64], ...]
    positions: NDArray[np.int64]
    next_position: int
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def row_of(self, row: int) -> int:
        """Where a row of the whole prompt is here; if it was pruned, the next one that stays."""
        return int(np.searchsorted(self.sources, row))


def prune_prompt(
    prompt: Prompt,
    kept: Sequence[NDArray[np.int64]],
    positions: NDArray[np.int64],
    next_position: int,
    mode: str,
) -> PromptRows:
    """Take the rows that stay.

    Args:
        prompt: L rows, one for every visual token.
        kept: For each picture and video the kept tokens int64 [K], ascending.
        positions: int64 [axes, L] of the whole prompt.
        next_position: Of the answer to the whole prompt.
        mode: ``contiguous`` counts the rows that are left; ``original`` gives every row the
            position that it had, so that gaps stand where tokens were removed.
    """
    stays = staying_rows(len(prompt.ids), prompt.spans, kept)
    is_visual = prompt.is_visual[stays]
    place = np.cumsum(np.bincount(stays, minlength=len(prompt.ids))) - 1
    spans = tuple(place[rows[k]] for rows, k in zip(prompt.spans, kept, strict=True))
    if mode == "contiguous":
        counted = np.arange(len(stays), dtype=np.int64)
        left = np.broadcast_to(counted, (len(positions), len(stays)))
        return PromptRows(prompt.ids[stays], is_visual, spans, left, len(stays), stays)
    if mode != "original":
        raise ValueError(f"unknown positions {mode!r}")
    return PromptRows(
        prompt.ids[stays], is_visual, spans, positions[:, stays], next_position, stays
    )
