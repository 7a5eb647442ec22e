"""Resizing with Pillow's filters on several cores, to the bit what ``Image.resize`` gives.

Pillow resizes in two passes, first along the rows, then along the columns, with 8 bits a channel
in between. Rows of the first pass do not depend on each other, and neither do columns of the
second, so each can be done in bands. Which pass comes first shows in the result: pictures that
shrink most in height, which Pillow 13 begins with the columns, are left to Pillow alone, and so is
every picture with a version whose order nobody has looked up.
"""

from __future__ import annotations

from collections.abc import Callable

import PIL
from PIL import Image

from divprune.runtime.inputs.threads import run_each

__all__ = ["resize"]

_TWO_PASSES = (
    Image.Resampling.LANCZOS,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.HAMMING,
)
_LAST_KNOWN_PILLOW = 13
_BAND_PIXELS = 1 << 19
"""Small enough that the copies of the bands in hand take a few MiB, whatever the picture has."""

_Box = tuple[int, int, int, int]


def resize(picture: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """A picture of ``size`` (width, height), or the same one where it has that size.

    Args:
        picture: Of mode ``RGB``.
        size: In pixels.
        resample: Pillow's number of the filter.
    """
    if picture.size == size:
        return picture
    if resample not in _TWO_PASSES or not _rows_first(picture.size, size):
        return picture.resize(size, resample)
    wide = _along_rows(picture, size[0], resample)
    return _along_columns(wide, size[1], resample)


def _rows_first(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether Pillow is known to begin with the pass along the rows."""
    lost_width, lost_height = old[0] - new[0], old[1] - new[1]
    known = int(PIL.__version__.partition(".")[0]) <= _LAST_KNOWN_PILLOW
    return known and not (lost_height > 0 and lost_height > 2 * lost_width)


def _along_rows(picture: Image.Image, width: int, resample: int) -> Image.Image:
    def band(top: int, bottom: int) -> tuple[_Box, tuple[int, int]]:
        return (0, top, picture.width, bottom), (width, bottom - top)

    longer = max(picture.width, width)
    return _in_bands(picture, (width, picture.height), resample, picture.height, longer, band)


def _along_columns(picture: Image.Image, height: int, resample: int) -> Image.Image:
    def band(left: int, right: int) -> tuple[_Box, tuple[int, int]]:
        return (left, 0, right, picture.height), (right - left, height)

    longer = max(picture.height, height)
    return _in_bands(picture, (picture.width, height), resample, picture.width, longer, band)


def _in_bands(
    picture: Image.Image,
    size: tuple[int, int],
    resample: int,
    lines: int,
    length: int,
    band: Callable[[int, int], tuple[_Box, tuple[int, int]]],
) -> Image.Image:
    """One pass over ``lines`` lines of up to ``length`` pixels; ``band`` cuts lines out."""
    step = max(1, _BAND_PIXELS // length)
    if step >= lines or picture.size == size:
        return picture.resize(size, resample)
    bands = [band(first, min(first + step, lines)) for first in range(0, lines, step)]
    result = Image.new("RGB", size, None)

    def resize_one(each: tuple[_Box, tuple[int, int]]) -> None:
        (left, top, _, _), part_size = each
        result.paste(picture.crop(each[0]).resize(part_size, resample), (left, top))

    run_each(resize_one, bands)
    return result
