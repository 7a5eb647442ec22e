"""Pictures with transparent parts, put on white."""

from __future__ import annotations

from PIL import Image

__all__ = ["on_white", "scale_transparent_level"]

_WHITE = (255, 255, 255, 255)
# By the raw mode of a PNG: Pillow widens (or narrows) the levels, but not the transparent one.
_SCALES = {"L;2": (85, 0), "L;4": (17, 0), "RGB;16B": (1, 8)}


def on_white(picture: Image.Image) -> Image.Image:
    """The picture in RGB, white where it is transparent; itself if it is RGB and opaque."""
    if picture.mode in ("La", "RGBa"):  # colours multiplied with alpha
        picture = picture.convert(picture.mode.upper())
    if _is_transparent(picture):
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _WHITE), picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def scale_transparent_level(picture: Image.Image) -> None:
    """Give the transparent level or colour of an unread PNG the scale that its levels will have.

    Levels of 16 bits a channel lose their low byte, and so does the transparent one: what differs
    from it in that byte alone is transparent too.
    """
    level = picture.info.get("transparency")
    tile = next(iter(getattr(picture, "tile", ())), None)
    if picture.format != "PNG" or level is None or tile is None:
        return
    factor, shift = _SCALES.get(str(tile[3]), (1, 0))
    if isinstance(level, int):
        picture.info["transparency"] = level * factor >> shift
    elif isinstance(level, tuple):
        picture.info["transparency"] = tuple(each * factor >> shift for each in level)


def _is_transparent(picture: Image.Image) -> bool:
    if "A" in picture.getbands():
        return True
    if picture.palette is not None and picture.palette.mode == "RGBA":
        return True
    return picture.info.get("transparency") is not None
