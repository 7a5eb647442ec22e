"""From 8-bit levels to what a vision tower reads: rescaled and normalised in one look-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.inputs.threads import run_each

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["LevelTable"]


@dataclass(frozen=True)
class LevelTable:
    """What each level of each channel becomes, to the last bit as transformers computes it.

    Attributes:
        rescale_factor: What the levels are multiplied with, in float64; None: they are not.
        mean: Subtracted from each channel after that, in float32.
        std: What each channel is divided by in the end, in float32.
    """

    rescale_factor: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """The output for each channel and level, float32 [3, 256]."""
        levels = np.arange(256, dtype=np.float64)
        rescaled = levels if self.rescale_factor is None else levels * self.rescale_factor
        mean, std = np.array([self.mean, self.std], dtype=np.float32)
        values: NDArray[np.float32] = (rescaled.astype(np.float32) - mean[:, None]) / std[:, None]
        return values

    def planes(self, crops: Sequence[Image.Image]) -> NDArray[np.float32]:
        """``pixel_values`` of RGB crops of one size, float32 [crops, 3, H, W]."""
        width, height = crops[0].size
        planes = np.empty((len(crops), 3, height, width), np.float32)
        values = self.values

        def look_up(number: int) -> None:
            levels = np.asarray(crops[number])
            for channel in range(3):
                # Levels are never out of range: "clip" writes to ``out`` without a buffer.
                plane = planes[number, channel]
                np.take(values[channel], levels[..., channel], out=plane, mode="clip")

        run_each(look_up, range(len(crops)))
        return planes

    def patches(self, picture: Image.Image, patch: int, merge: int) -> NDArray[np.float32]:
        """Patches of an RGB picture, the ``merge`` x ``merge`` of a block together.

        Args:
            picture: Its sides are multiples of ``patch * merge``.
            patch: Side of a patch in pixels.
            merge: Patches along the side of a block.

        Returns:
            float32 [blocks, merge * merge, 3, patch, patch], blocks in raster order.
        """
        side = patch * merge
        rows, columns = picture.height // side, picture.width // side
        patches = np.empty((rows, columns, merge, merge, 3, patch, patch), np.float32)
        levels = np.asarray(picture).reshape(rows, merge, patch, columns, merge, patch, 3)
        table = self.values.reshape(-1)
        channels = np.arange(0, table.size, 256, dtype=np.uint16)

        def look_up(row: int) -> None:
            places = (levels[row] + channels).transpose(2, 0, 3, 5, 1, 4)
            np.take(table, places, out=patches[row], mode="clip")

        run_each(look_up, range(rows))
        return patches.reshape(rows * columns, merge * merge, 3, patch, patch)
