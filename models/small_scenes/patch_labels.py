"""What each patch of a picture shows: the tower's own task while it learns to see."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.small_scenes.scenes import COLOURS, IMAGE_SIZE, SHAPES, SIZES, Scene

__all__ = ["IGNORE", "PatchLabels", "label_patches"]

IGNORE = -100
_COVERED, _FREE = 0.2, 0.02  # fraction of a patch; between the two it is not asked about


@dataclass(frozen=True)
class PatchLabels:
    """Labels of the patches in raster order; ``IGNORE`` where there is nothing to say.

    Attributes:
        shape: int64 [N], 0 for background, 1 + index in SHAPES.
        colour: int64 [N], index in COLOURS.
        size: int64 [N], index in SIZES.
        centre: float32 [N], 1 where a figure's centre lies.
        offset: float32 [N, 2], from the patch to its figure's centre in x and y, in patches.
    """

    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    size: NDArray[np.int64]
    centre: NDArray[np.float32]
    offset: NDArray[np.float32]


def label_patches(scene: Scene, owner: NDArray[np.uint8], patch: int) -> PatchLabels:
    """Labels from the supersampled ``owner`` map of a rendered scene."""
    grid = IMAGE_SIZE // patch
    fine = owner.shape[0] // grid
    tiles = owner.reshape(grid, fine, grid, fine).swapaxes(1, 2).reshape(grid * grid, -1)
    coverage = np.stack(
        [(tiles == index + 1).mean(axis=1) for index in range(len(scene.figures))], axis=1
    )
    best = coverage.argmax(axis=1)
    covered = coverage.max(axis=1) >= _COVERED
    figures = scene.figures
    table = np.array(
        [
            (
                SHAPES.index(figure.shape) + 1,
                list(COLOURS).index(figure.colour),
                list(SIZES).index(figure.size),
            )
            for figure in figures
        ],
        np.int64,
    )[best]
    table[~covered] = IGNORE
    table[coverage.sum(axis=1) < _FREE, 0] = 0
    places = np.array([(figure.x, figure.y) for figure in figures], np.float32) / patch
    centre = np.zeros(grid * grid, np.float32)
    centre[places[:, 1].astype(int) * grid + places[:, 0].astype(int)] = 1
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    own = np.stack([columns, rows], axis=1).astype(np.float32) + 0.5
    offset = (places[best] - own) * covered[:, None]
    return PatchLabels(table[:, 0], table[:, 1], table[:, 2], centre, offset.astype(np.float32))
