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
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from divprune.runtime.errors import OptionError

if TYPE_CHECKING:
    from divprune.runtime.families import TokenMap

    Box = tuple[int, int, int, int]

__all__ = [
    "ENDINGS",
    "count_undrawn",
    "draw_contact_sheet",
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
_GAP = 8


def draw_overlay(
    picture: Image.Image,
    token_map: TokenMap,
    kept_indices: Collection[int],
    selection_order: Sequence[int] | None = None,
) -> Image.Image:
    """Draw which patches of a picture were kept.

    Args:
        picture: As `load_image` returns it.
        token_map: Where in the picture each visual token lies.
        kept_indices: The tokens that the language model saw.
        selection_order: The same tokens in the order in which they were chosen: they are
            numbered from 1. A number that does not fit into what is visible of its patch is
            left out.

    Returns:
        RGB, in the size of the picture; views that overlap stand side by side. With numbers a
        small picture is enlarged by a whole number, so that there is room for them.

    Raises:
        ValueError: if an index is outside the map.
    """
    panels = sorted(set(token_map.panels.tolist()))
    if undrawn := count_undrawn(token_map, kept_indices):
        log.warning("%d kept tokens lie in padding or stand for no patch: not drawn", undrawn)
    scale = 1 if selection_order is None else _enlargement(picture.size, token_map)
    numbers = {token: i for i, token in enumerate(selection_order or (), start=1)}
    views = [
        _draw_view(picture, _panel_boxes(token_map, panel, scale), kept_indices, numbers, scale)
        for panel in panels
    ]
    return views[0] if len(views) == 1 else _side_by_side(views)


def draw_contact_sheet(
    frames: Sequence[Image.Image],
    token_map: TokenMap,
    kept_indices: Collection[int],
    selection_order: Sequence[int] | None = None,
) -> Image.Image:
    """Draw which patches of each frame of a video were kept, frames in reading order.

    Args:
        frames: Those that the family took, in the order of ``token_map.panel_names``.
        token_map: Where in its frame each visual token lies.
        kept_indices: The tokens that the language model saw.
        selection_order: As for ``draw_overlay``.
    """
    numbers = {token: i for i, token in enumerate(selection_order or (), start=1)}
    views = [
        _draw_view(frame, _panel_boxes(token_map, panel, 1), kept_indices, numbers, 1)
        for panel, frame in enumerate(frames)
    ]
    columns = math.ceil(math.sqrt(len(views)))
    rows = [_side_by_side(views[i : i + columns]) for i in range(0, len(views), columns)]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height + _GAP for row in rows) - _GAP))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    return sheet


def count_undrawn(token_map: TokenMap, kept_indices: Collection[int]) -> int:
    """How many kept tokens an overlay cannot show: padding only, or no patch at all.

    Raises:
        ValueError: if an index is outside the map.
    """
    kept = np.array(sorted(kept_indices), np.int64)
    if len(kept) and not 0 <= kept[0] <= kept[-1] < len(token_map.boxes):
        raise ValueError(f"token {kept[-1]} of {len(token_map.boxes)}")
    return int(np.isnan(token_map.boxes[kept, 0]).sum())


def _panel_boxes(token_map: TokenMap, panel: int, scale: int) -> dict[int, Box]:
    """Where in the drawing each token of a view lies, without those that lie nowhere."""
    boxes: dict[int, Box] = {}
    for token in np.flatnonzero(token_map.panels == panel).tolist():
        corners = token_map.boxes[token]
        if not np.isnan(corners[0]):
            left, top, right, bottom = (round(float(each) * scale) for each in corners)
            if left < right and top < bottom:
                boxes[token] = (left, top, right, bottom)
    return boxes


def _draw_view(
    picture: Image.Image,
    boxes: Mapping[int, Box],
    kept: Collection[int],
    numbers: Mapping[int, int],
    scale: int,
) -> Image.Image:
    """One view: what no token covers dark, removed patches grey, kept ones bright."""
    size = (picture.width * scale, picture.height * scale)
    large = picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
    canvas, removed = _dimmed(large, *_OUTSIDE), _dimmed(large, *_REMOVED)
    bright = [box for token, box in boxes.items() if token in kept]
    for token, box in boxes.items():
        canvas.paste((large if token in kept else removed).crop(box), box[:2])
    _draw_outlines(canvas, bright)
    if numbers:
        _draw_numbers(canvas, {n: boxes[t] for t, n in numbers.items() if t in boxes})
    return canvas


def _side_by_side(views: Sequence[Image.Image]) -> Image.Image:
    width = sum(view.width + _GAP for view in views) - _GAP
    sheet = Image.new("RGB", (width, max(view.height for view in views)))
    left = 0
    for view in views:
        sheet.paste(view, (left, 0))
        left += view.width + _GAP
    return sheet


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
        fix="leave --overlay-numbers out, or choose a smaller --keep",
    )


def _enlargement(size: tuple[int, int], token_map: TokenMap) -> int:
    """The whole number that makes room for numbers, as far as the picture stays drawable."""
    sides = token_map.boxes[:, 2:] - token_map.boxes[:, :2]
    whole = sides[~np.isnan(sides[:, 0])]
    if not len(whole):
        return 1
    # The largest patches are whole ones; those at an edge may be cut.
    wanted = math.ceil(_NUMBERED_PATCH / float(whole.max(axis=0).min()))
    return max(1, min(wanted, _LARGEST_ENLARGED // max(size)))


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


def _draw_numbers(canvas: Image.Image, boxes: Mapping[int, Box]) -> None:
    """Number patches, in one size that suits the largest number in a whole patch."""
    if not boxes:
        return
    width = max(right - left for left, _, right, _ in boxes.values())
    height = max(bottom - top for _, top, _, bottom in boxes.values())
    font = _fitting_font(str(max(boxes)), width, height)
    if font is None:
        return
    draw = ImageDraw.Draw(canvas)
    stroke = max(1, round(font.size / 10))
    for number, box in boxes.items():
        if not _fits(str(number), font, box[2] - box[0], box[3] - box[1]):
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
