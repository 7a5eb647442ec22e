"""The picture as the language model saw it: kept patches bright, everything else dimmed.

    kept patch            as in the picture
    removed patch         dark and nearly grey
    not in any patch      darker still: what the centre crop cut off, and what is left over at
                          the edge where the patch size does not divide the size of the input

A kept patch that lies in padding only has no place in the picture and is not drawn; nor is a
token that stands for no patch (a class token). A warning in the log says how many there are.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from divprune.runtime.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from divprune.runtime.inputs.image_processor import Geometry, ImageProcessor

    Box = tuple[int, int, int, int]

__all__ = [
    "ENDINGS",
    "PatchGrid",
    "count_undrawn",
    "draw_overlay",
    "encode_overlay",
    "nothing_to_number",
]

log = logging.getLogger(__name__)

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File endings of overlay pictures and Pillow's names of the formats."""

_REMOVED = (0.8, 0.40)  # how far to grey, and the brightness that is left
_OUTSIDE = (1.0, 0.16)
_OUTLINE = (255, 196, 0)
_SMALLEST_OUTLINED = 8
_SMALLEST_FONT = 8
_LARGEST_FONT = 64
_NUMBERED_PATCH = 26
_LARGEST_ENLARGED = 4096


@dataclass(frozen=True)
class PatchGrid:
    """How the visual tokens of one picture lie on the vision tower's input.

    Attributes:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        patch: Side of a patch in pixels of the tower's input.
        leading: Tokens before the first patch: 1 where the class token is kept, otherwise 0.
    """

    rows: int
    columns: int
    patch: int
    leading: int = 0

    @classmethod
    def derive(cls, num_image_tokens: int, size: tuple[int, int]) -> PatchGrid:
        """Find the grid that gives this number of tokens.

        A tower cuts its input into square patches from the top left corner on, and drops what
        is left over at the right and at the bottom: 384 pixels are 27 patches of 14. Of the
        patch sizes that give the number, the one that divides the input is taken.

        Args:
            num_image_tokens: N, tokens before pruning.
            size: (height, width) of the tower's input.

        Raises:
            UnsupportedError: if no patch size gives the number, or several do.
        """
        for leading in (0, 1):
            grids = _grids(num_image_tokens - leading, size, leading)
            exact = [grid for grid in grids if size[0] % grid.patch == size[1] % grid.patch == 0]
            if len(found := exact or grids) == 1:
                return found[0]
            if found:
                break
        else:
            grids = []
        raise UnsupportedError(
            "it is not known where in the picture a visual token lies",
            expected=f"square patches, the same number in all, of {size[1]} x {size[0]} pixels",
            found=f"{num_image_tokens} visual tokens, which "
            + (f"{len(grids)} patch sizes give" if grids else "no patch size gives"),
            fix="run without --overlay",
        )

    @property
    def num_image_tokens(self) -> int:
        """N, patches and leading tokens."""
        return self.rows * self.columns + self.leading

    def corners(self, index: int) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of a token's patch on the input; None: it has none."""
        if not 0 <= index < self.num_image_tokens:
            raise ValueError(f"token {index} of {self.num_image_tokens}")
        if index < self.leading:
            return None
        row, column = divmod(index - self.leading, self.columns)
        left, top = column * self.patch, row * self.patch
        return left, top, left + self.patch, top + self.patch


def draw_overlay(
    picture: Image.Image,
    processor: ImageProcessor,
    grid: PatchGrid,
    kept_indices: Collection[int],
    selection_order: Sequence[int] | None = None,
) -> Image.Image:
    """Draw which patches of a picture were kept.

    Args:
        picture: As `load_image` returns it.
        processor: The image processor that the picture went through.
        grid: The patches on the processor's output.
        kept_indices: The tokens that the language model saw.
        selection_order: The same tokens in the order in which they were chosen: they are
            numbered from 1. A number that does not fit into what is visible of its patch is
            left out.

    Returns:
        RGB, in the size of the picture. With numbers a small picture is enlarged by a whole
        number, so that there is room for them.

    Raises:
        ValueError: if an index is outside the grid, or the order is one of other tokens.
    """
    if selection_order is not None and sorted(selection_order) != sorted(kept_indices):
        raise ValueError("the selection order does not hold the kept indices")
    geometry = processor.geometry(*picture.size)
    scale = 1 if selection_order is None else _enlargement(geometry, grid)
    source = picture.convert("RGB")
    if scale > 1:
        source = source.resize((source.width * scale, source.height * scale))
    boxes = _boxes(geometry, grid, kept_indices, scale)
    if undrawn := len(kept_indices) - len(boxes):
        log.warning(
            "%d of %d kept tokens lie outside the picture (padding) and are not drawn",
            undrawn,
            len(kept_indices),
        )
    canvas = _dimmed(source, *_OUTSIDE)
    removed = _visible(geometry, (0, 0, grid.columns * grid.patch, grid.rows * grid.patch), scale)
    if removed is not None:
        canvas.paste(_dimmed(source.crop(removed), *_REMOVED), removed)
    for box in boxes.values():
        canvas.paste(source.crop(box), box)
    _draw_outlines(canvas, list(boxes.values()))
    if selection_order is not None:
        _draw_numbers(canvas, [boxes.get(index) for index in selection_order])
    return canvas


def count_undrawn(
    size: tuple[int, int],
    processor: ImageProcessor,
    grid: PatchGrid,
    kept_indices: Collection[int],
) -> int:
    """How many kept tokens an overlay cannot show: padding only, or no patch at all.

    Args:
        size: (width, height) of the picture.
        processor: The image processor that the picture went through.
        grid: The patches on the processor's output.
        kept_indices: The tokens that the language model saw.

    Raises:
        ValueError: if an index is outside the grid.
    """
    geometry = processor.geometry(*size)
    return len(kept_indices) - len(_boxes(geometry, grid, kept_indices, 1))


def encode_overlay(overlay: Image.Image, ending: str = ".png") -> bytes:
    """The bytes of a picture file with one of `ENDINGS`."""
    file = io.BytesIO()
    overlay.save(file, ENDINGS[ending.lower()], quality=90)
    return file.getvalue()


def nothing_to_number() -> OptionError:
    """The error where numbers are asked for and there is no order of selection."""
    return OptionError(
        "--overlay-numbers has nothing to number",
        expected="a selection of visual tokens",
        found="all tokens kept, without a selection",
        fix="choose a smaller --keep, or leave --overlay-numbers out",
    )


def _grids(patches: int, size: tuple[int, int], leading: int) -> list[PatchGrid]:
    height, width = size
    shapes = ((height // side, width // side, side) for side in range(1, min(size) + 1))
    return [PatchGrid(*shape, leading) for shape in shapes if shape[0] * shape[1] == patches]


def _enlargement(geometry: Geometry, grid: PatchGrid) -> int:
    """The whole number that makes room for numbers, as far as the picture stays drawable."""
    corners = (geometry.to_picture(0, 0), geometry.to_picture(grid.patch, grid.patch))
    side = min(end - start for start, end in zip(*corners, strict=True))
    wanted = math.ceil(_NUMBERED_PATCH / side)
    return max(1, min(wanted, _LARGEST_ENLARGED // max(geometry.picture)))


def _boxes(
    geometry: Geometry, grid: PatchGrid, indices: Collection[int], scale: int
) -> dict[int, Box]:
    """Where in the picture each token's patch lies, without those that lie nowhere in it."""
    patches = {index: _visible(geometry, grid.corners(index), scale) for index in indices}
    return {index: box for index, box in patches.items() if box is not None}


def _visible(
    geometry: Geometry, corners: tuple[int, int, int, int] | None, scale: int
) -> Box | None:
    """What of a rectangle of the tower's input lies in the picture; None: nothing."""
    if corners is None:
        return None
    left, top = geometry.to_picture(*corners[:2])
    right, bottom = geometry.to_picture(*corners[2:])
    width, height = geometry.picture
    box = (
        round(max(left, 0) * scale),
        round(max(top, 0) * scale),
        round(min(right, width) * scale),
        round(min(bottom, height) * scale),
    )
    return box if box[0] < box[2] and box[1] < box[3] else None


def _dimmed(picture: Image.Image, grey: float, brightness: float) -> Image.Image:
    faded = Image.blend(picture, picture.convert("L").convert("RGB"), grey)
    return faded.point([round(level * brightness) for level in range(256)] * 3)


def _draw_outlines(canvas: Image.Image, boxes: Sequence[Box]) -> None:
    """A thin line just inside each patch, unless it would hide a small patch."""
    draw = ImageDraw.Draw(canvas)
    for left, top, right, bottom in boxes:
        side = min(right - left, bottom - top)
        if side >= _SMALLEST_OUTLINED:
            line = max(1, side // 48)
            draw.rectangle((left, top, right - 1, bottom - 1), outline=_OUTLINE, width=line)


def _draw_numbers(canvas: Image.Image, boxes: Sequence[Box | None]) -> None:
    """Number the patches from 1, in one size that suits the largest number in a whole patch."""
    visible = [box for box in boxes if box is not None]
    if not visible:
        return
    width = max(right - left for left, _, right, _ in visible)
    height = max(bottom - top for _, top, _, bottom in visible)
    font = _fitting_font(str(len(boxes)), width, height)
    if font is None:
        return
    draw = ImageDraw.Draw(canvas)
    stroke = max(1, round(font.size / 10))
    for number, box in enumerate(boxes, start=1):
        if box is None or not _fits(str(number), font, box[2] - box[0], box[3] - box[1]):
            continue
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        draw.text(
            centre, str(number), "white", font, "mm", stroke_width=stroke, stroke_fill="black"
        )


def _fitting_font(text: str, width: int, height: int) -> ImageFont.FreeTypeFont | None:
    for size in range(min(height // 2, _LARGEST_FONT), _SMALLEST_FONT - 1, -1):
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if _fits(text, font, width, height):
            return font
    return None


def _fits(text: str, font: ImageFont.FreeTypeFont, width: int, height: int) -> bool:
    left, top, right, bottom = font.getbbox(text, stroke_width=max(1, round(font.size / 10)))
    return right - left <= width - 2 and bottom - top <= height - 2
