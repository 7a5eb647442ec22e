"""Positions with three axes: time, height and width (multimodal rotary embedding)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Span", "multimodal_positions"]


@dataclass(frozen=True)
class Span:
    """One run of visual tokens.

    Attributes:
        grid: Its tokens in time, height and width, in raster order.
        interval: Positions between two steps of time.
    """

    grid: tuple[int, int, int]
    interval: float = 1.0

    def positions(self, start: int) -> NDArray[np.int64]:
        """int64 [3, time * height * width], counted from ``start`` on every axis."""
        time, height, width = np.indices(self.grid).reshape(3, -1)
        # In float32, as transformers multiplies: a step of 1.9999999 is one of 1.
        time = (time.astype(np.float32) * np.float32(self.interval)).astype(np.int64)
        return start + np.stack([time, height, width]).astype(np.int64)

    @property
    def advance(self) -> int:
        """How far behind ``start`` the text behind the run starts.

        Of height and width the larger, whatever time needs: that is the rule of transformers
        5.3 and later. Earlier ones started the text behind a video at its largest position + 1.
        """
        return max(self.grid[1:])


def multimodal_positions(
    is_visual: NDArray[np.bool_], spans: Iterable[Span]
) -> tuple[NDArray[np.int64], int]:
    """Number the rows of an unpruned prompt as transformers' ``get_rope_index`` does.

    Text counts on all axes alike; a run of visual tokens starts where the text before it ended.

    Args:
        is_visual: [L].
        spans: The runs of visual rows, in order.

    Returns:
        int64 [3, L] and the position of the answer's first token: the largest of all plus 1.

    Raises:
        ValueError: if the runs are not those of ``is_visual``.
    """
    positions = np.empty((3, len(is_visual)), np.int64)
    visual = np.flatnonzero(is_visual)
    row = position = taken = 0
    for span in spans:
        count = int(np.prod(span.grid))
        rows = visual[taken : taken + count]
        if len(rows) < count or rows[-1] - rows[0] != count - 1:
            raise ValueError(f"no run of {count} visual rows behind row {row}")
        text = int(rows[0]) - row
        positions[:, row : rows[0]] = position + np.arange(text)
        positions[:, rows] = span.positions(position + text)
        row, position, taken = int(rows[-1]) + 1, position + text + span.advance, taken + count
    if taken != len(visual):
        raise ValueError(f"{len(visual)} visual rows, but runs of {taken}")
    positions[:, row:] = position + np.arange(len(is_visual) - row)
    return positions, int(positions.max(initial=-1)) + 1
