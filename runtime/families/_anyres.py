"""How LLaVA-1.6 and its successors cut a picture of any size into crops.

Crop 0 is the whole picture squeezed into a square. The others are the tiles of the picture,
resized with its aspect ratio into the grid that wastes least and framed in black:

    picture ─► best grid of tiles ─► resize ─► frame in black ─► tiles, row by row

Every size here is (height, width); arithmetic and rounding are those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune.runtime.errors import OptionError
from divprune.runtime.inputs.image_processor import ImageProcessor
from divprune.runtime.inputs.resizing import resize

__all__ = ["Grids", "Size", "Tiling", "best_pinpoint", "cut_crops"]

Size = tuple[int, int]


def best_pinpoint(picture: Size, pinpoints: Sequence[Size]) -> Size:
    """The grid, in pixels, that keeps most of the picture's resolution and wastes least area.

    Of equals the first one is taken.
    """
    height, width = picture

    def key(pinpoint: Size) -> tuple[int, int]:
        scale = min(pinpoint[1] / width, pinpoint[0] / height)
        resized = int(width * scale) * int(height * scale)
        effective = min(resized, height * width)
        return effective, effective - pinpoint[0] * pinpoint[1]

    return max(pinpoints, key=key)


@dataclass(frozen=True)
class Tiling:
    """One picture on one grid of tiles.

    Attributes:
        picture: Size of the upright picture.
        pinpoint: Size of the grid in pixels.
        side: Side of a tile in pixels.
        cells: Patches along the side of a tile.
        patch: Side of a patch in pixels; where ``cells`` patches do not fill a tile, the tower
            leaves out the rest at its right and at its bottom.
    """

    picture: Size
    pinpoint: Size
    side: int
    cells: int
    patch: int

    @property
    def tiles(self) -> Size:
        """Rows and columns of tiles."""
        return self.pinpoint[0] // self.side, self.pinpoint[1] // self.side

    @property
    def resized(self) -> Size:
        """Size of the picture on the grid: one side fills it, the other is rounded up."""
        (height, width), (bottom, right) = self.picture, self.pinpoint
        horizontal, vertical = right / width, bottom / height
        if horizontal < vertical:
            return min(math.ceil(height * horizontal), bottom), right
        return bottom, min(math.ceil(width * vertical), right)

    @property
    def offset(self) -> Size:
        """Where the picture's top left corner lies on the grid: (top, left) in pixels."""
        resized = self.resized
        return (self.pinpoint[0] - resized[0]) // 2, (self.pinpoint[1] - resized[1]) // 2

    @property
    def dropped(self) -> Size:
        """Rows and columns of patches that are padding: so many at each of both ends."""
        height, width = self.picture
        rows, columns = (count * self.cells for count in self.tiles)
        if width / height > columns / rows:
            inside = int(round(height * (columns / width), 7))
            return (rows - inside) // 2, 0
        inside = int(round(width * (rows / height), 7))
        return 0, (columns - inside) // 2

    @property
    def grid(self) -> Size:
        """Rows and columns of patches that are left without the padding."""
        (tile_rows, tile_columns), (rows, columns) = self.tiles, self.dropped
        return tile_rows * self.cells - 2 * rows, tile_columns * self.cells - 2 * columns

    def to_picture(self, boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Boxes [N, 4] in patches of the whole grid as pixels of the picture."""
        scale = [size / resized for size, resized in zip(self.picture, self.resized, strict=True)]
        (top, left), (down, across) = self.offset, scale
        near = self._pixels(boxes[:, :2], np.floor(boxes[:, :2]))
        far = self._pixels(boxes[:, 2:], np.ceil(boxes[:, 2:]) - 1)
        pixels = np.concatenate([near, far], axis=1)
        return (pixels - [left, top, left, top]) * [across, down, across, down]

    def _pixels(
        self, edges: npt.NDArray[np.float64], patches: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Pixels of the grid where the edges of patches are, each on the tile of its patch."""
        tiles = patches // self.cells
        return tiles * self.side + (edges - tiles * self.cells) * self.patch


@dataclass(frozen=True)
class Grids:
    """The grids of tiles that a checkpoint allows.

    Attributes:
        side: Side of a crop in pixels.
        patch: Side of a patch in pixels.
        pinpoints: Sizes of the grids in pixels.
        max_tiles: A grid with more patches than so many tiles is shrunk to about as many, as
            LLaVA-OneVision's ``anyres_max_N`` has it; None for no such rule.
    """

    side: int
    patch: int
    pinpoints: tuple[Size, ...]
    max_tiles: int | None = None

    @property
    def cells(self) -> int:
        """Patches along the side of a crop."""
        return self.side // self.patch

    def tiling(self, picture: Size) -> Tiling:
        """How a picture is cut."""
        pinpoint = best_pinpoint(picture, self.pinpoints)
        return Tiling(picture, pinpoint, self.side, self.cells, self.patch)

    def target(self, grid: Size) -> Size:
        """What a grid of patches is shrunk to; grids that exceed it by little are left alone."""
        if self.max_tiles is None:
            return grid
        ratio = math.sqrt(grid[0] * grid[1] / (self.max_tiles * self.cells**2))
        return grid if ratio <= 1.1 else (int(grid[0] // ratio), int(grid[1] // ratio))

    def count(self, grid: Size) -> int:
        """N of a picture: its base view, its grid of patches, and a newline a row."""
        height, width = self.target(grid)
        return self.cells**2 + height * (width + 1)

    def counts(self, pinpoint: Size) -> list[int]:
        """N of every picture that may be cut by a pinpoint: padding leaves grids of many sizes."""
        rows, columns = (length // self.side * self.cells for length in pinpoint)
        flat = [(rows - 2 * dropped, columns) for dropped in range(rows // 2 + 1)]
        narrow = [(rows, columns - 2 * dropped) for dropped in range(1, columns // 2 + 1)]
        return [self.count(grid) for grid in flat + narrow]

    def num_crops(self, pinpoint: Size) -> int:
        """The base view and the tiles."""
        return 1 + pinpoint[0] // self.side * (pinpoint[1] // self.side)

    def within(self, limit: int) -> Grids:
        """Those that cannot give more than ``limit`` visual tokens.

        Raises:
            OptionError: if there are none, with the smallest limit that works.
        """
        largest = {pinpoint: max(self.counts(pinpoint)) for pinpoint in self.pinpoints}
        allowed = tuple(pinpoint for pinpoint in self.pinpoints if largest[pinpoint] <= limit)
        if allowed:
            return replace(self, pinpoints=allowed)
        smallest = min(largest.values())
        raise OptionError(
            "--max-image-tokens is too small for this model",
            expected=f"at least {smallest}, for its smallest grid of tiles",
            found=limit,
            fix=f"--max-image-tokens {smallest}",
        )


def cut_crops(
    picture: Image.Image, tiling: Tiling, processor: ImageProcessor
) -> npt.NDArray[np.float32]:
    """``pixel_values`` float32 [1 + tiles, 3, side, side]: the whole picture, then its tiles."""
    picture = processor.to_rgb(picture)
    side = tiling.side
    height, width = tiling.resized
    resized = resize(picture, (width, height), processor.resample)
    high, wide = tiling.pinpoint
    top, left = tiling.offset
    framed = Image.new("RGB", (wide, high))
    framed.paste(resized, (left, top))
    tiles = [
        framed.crop((left, top, left + side, top + side))
        for top in range(0, tiling.pinpoint[0], side)
        for left in range(0, tiling.pinpoint[1], side)
    ]
    whole = resize(picture, (side, side), processor.resample)
    return processor.levels.planes([processor.fit(crop) for crop in (whole, *tiles)])
