"""Which rows of the tower's output make up the visual tokens, as an index with weights.

A visual token is a weighted sum of ``T`` rows: one where a family only reorders and drops, four
where it pools or interpolates. The rows are those of all crops, patch by patch, and behind them
the learned newline. The index comes from running the packing on the rows' own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from divprune.runtime.families._anyres import Size, Tiling

__all__ = [
    "Packing",
    "average",
    "bilinear",
    "concatenate",
    "newline",
    "pack_tiles",
    "repeat",
    "same",
]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """N visual tokens.

    Attributes:
        rows: int64 [N, T].
        weights: float32 [N, T], of those rows; a token of one row has the weights 1, 0, 0, 0.
        boxes: float64 [N, 4]: left, top, right, bottom of what the token sees, in patches of
            its view; NaN for the newline.
        views: int64 [N]: 0 for the whole picture and 1 for its tiles, or the frame.
    """

    rows: Ints
    weights: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float64]
    views: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Ints, view: int | None = None) -> Packing:
        """The same tokens over a matrix of which ``index`` says where its rows are."""
        views = self.views if view is None else np.full(len(self), view)
        return Packing(index[self.rows], self.weights, self.boxes, views)


def same(grid: Size, taps: int) -> Packing:
    """Every patch of a grid is a token."""
    count = grid[0] * grid[1]
    rows = np.repeat(np.arange(count)[:, None], taps, axis=1)
    weights = np.zeros((count, taps), np.float32)
    weights[:, 0] = 1
    return Packing(rows, weights, _boxes(grid, grid), np.zeros(count, np.int64))


def average(grid: Size) -> Packing:
    """Means of 2 x 2 patches; an odd last row or column is left out."""
    height, width = grid[0] // 2, grid[1] // 2
    top_left = 2 * (np.arange(height)[:, None] * grid[1] + np.arange(width)).reshape(-1, 1)
    rows = top_left + np.array([0, 1, grid[1], grid[1] + 1])
    weights = np.full(rows.shape, 0.25, np.float32)
    boxes = _boxes((height, width), (2 * height, 2 * width))
    return Packing(rows, weights, boxes, np.zeros(len(rows), np.int64))


def bilinear(grid: Size, target: Size) -> Packing:
    """A grid resampled to another size, as torch interpolates without aligned corners."""
    tops, bottoms, down = _axis(grid[0], target[0])
    lefts, rights, across = _axis(grid[1], target[1])
    rows = [
        (vertical[:, None] * grid[1] + horizontal).ravel()
        for vertical in (tops, bottoms)
        for horizontal in (lefts, rights)
    ]
    weights = [
        (vertical[:, None] * horizontal).ravel()
        for vertical in (1 - down, down)
        for horizontal in (1 - across, across)
    ]
    count = target[0] * target[1]
    views = np.zeros(count, np.int64)
    return Packing(np.stack(rows, 1), np.stack(weights, 1), _boxes(target, grid), views)


def newline(row: int, taps: int) -> Packing:
    """The learned newline, whose row stands behind those of all crops."""
    weights = np.zeros((1, taps), np.float32)
    weights[:, 0] = 1
    nowhere = np.full((1, 4), np.nan)
    return Packing(np.full((1, taps), row), weights, nowhere, np.zeros(1, np.int64))


def pack_tiles(tiling: Tiling, target: Size, taps: int) -> Packing:
    """The whole picture's patches, then those of the tiles as one grid without its padding.

    A newline ends every row of the grid, which is shrunk to ``target`` where that is smaller.
    """
    cells, (tile_rows, tile_columns) = tiling.cells, tiling.tiles
    whole = same((cells, cells), taps)
    by_tile = len(whole) * (1 + np.arange(tile_rows * tile_columns)[:, None]) + whole.rows[:, 0]
    index: Ints = by_tile.reshape(tile_rows, tile_columns, cells, cells).transpose(0, 2, 1, 3)
    index = index.reshape(tile_rows * cells, tile_columns * cells)
    (height, width), (top, left) = tiling.grid, tiling.dropped
    index = index[top : top + height, left : left + width].ravel()
    inside = same(target, taps) if target == (height, width) else bilinear((height, width), target)
    inside = inside.take(index, view=1)
    inside.boxes[:] += [left, top, left, top]
    ended = _end_rows(inside, target, newline(len(whole) * (1 + tile_rows * tile_columns), taps))
    return concatenate([whole, ended])


def repeat(frame: Packing, num_frames: int, patches: int) -> Packing:
    """One packing for each of several frames of ``patches`` rows, one after another."""
    index = np.arange(patches)
    return concatenate(
        [frame.take(index + number * patches, view=number) for number in range(num_frames)]
    )


def concatenate(parts: list[Packing]) -> Packing:
    """Tokens of all parts, in order."""
    return Packing(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.weights for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.views for part in parts]),
    )


def _end_rows(tokens: Packing, grid: Size, end: Packing) -> Packing:
    """Put ``end`` behind every row of ``grid``."""
    height, width = grid
    order: Ints = np.arange(height * width).reshape(height, width)
    order = np.concatenate([order, np.full((height, 1), height * width)], axis=1).ravel()
    both = concatenate([tokens, end])
    views = np.ones(len(order), np.int64)
    return Packing(both.rows[order], both.weights[order], both.boxes[order], views)


def _axis(size: int, target: int) -> tuple[Ints, Ints, npt.NDArray[np.float32]]:
    """For each target cell the two source cells around it, and the weight of the second."""
    scale = np.float32(size) / np.float32(target)
    place = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    place = np.maximum(place, np.float32(0))
    first = np.minimum(place.astype(np.int64), size - 1)
    return first, np.minimum(first + 1, size - 1), place - first.astype(np.float32)


def _boxes(grid: Size, extent: Size) -> npt.NDArray[np.float64]:
    """Boxes [rows * columns, 4] of a grid that covers ``extent`` (height, width)."""
    tops, lefts = (axis.ravel() for axis in np.indices(grid))
    down, across = (size / max(count, 1) for size, count in zip(extent, grid, strict=True))
    return np.stack(
        [lefts * across, tops * down, (lefts + 1) * across, (tops + 1) * down], axis=1
    ).astype(np.float64)
