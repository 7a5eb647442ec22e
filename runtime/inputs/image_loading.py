"""A picture from wherever the user has it: a file, a URL, standard input, bytes, Pillow, NumPy.

The result is upright (EXIF orientation applied, and forgotten) and RGB: for opaque pictures of
8 bits a channel pixel for pixel what transformers' `load_image` returns. Elsewhere that conversion
would lose the picture:

- What is transparent shows white, in every format; dropping the alpha channel shows the colour
  that happens to be stored there, black as a rule.
- 16 bits in one grey channel (Pillow modes `I;16`, `I;16B`, `I;16L`, `I;16N` and `I`, so also
  16-bit greyscale PNG) are scaled to 8 bits by keeping the high byte, as Pillow itself does for
  16-bit colour, and floats from 0 to 1 by 255; converted directly, they are clipped.
- Pictures of more than `_MAX_WORKING_PIXELS` are halved, while they are decoded where the format
  can: no vision tower sees a quarter of that.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

from divprune.runtime.errors import ImageError
from divprune.runtime.inputs.image_sources import ACCEPTED, MAX_STREAM_BYTES, open_source
from divprune.runtime.inputs.picture_blocks import without_metadata
from divprune.runtime.inputs.transparency import on_white, scale_transparent_level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

__all__ = ["MAX_PIXELS", "MAX_STREAM_BYTES", "load_image", "read_size"]

_Read = TypeVar("_Read")

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: where Pillow stops as well unless it was told otherwise."""

_MAX_WORKING_PIXELS = 64_000_000
_ORIENTATION = 0x0112
_ON_THEIR_SIDE = (5, 6, 7, 8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PROGRAMS = ("EPS",)  # which Pillow would have Ghostscript run
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def load_image(source: Picture, *, copy: bool = True) -> Image.Image:
    """Return the picture at `source`, upright and in RGB.

    Args:
        source: A path, an `http:`, `https:`, `file:` or `data:` URL, `-` for standard input, the
            bytes of a picture file, a Pillow image (which is left as it is), or a uint8 array
            [height, width], or [height, width, 3 or 4].
        copy: False gives a Pillow image itself back where it is upright and `RGB` already, for
            callers that only look at it.

    Returns:
        An image of mode `RGB` that nothing says is to be turned.

    Raises:
        ImageError: Nothing is there, it cannot be fetched, it is not a picture, it is damaged,
            or it has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        with _decoding("the Pillow image"):
            picture = _to_upright_rgb(source, "the Pillow image")
            return picture.copy() if copy and picture is source else picture
    if isinstance(source, np.ndarray):
        with _decoding("the array"):
            return _to_upright_rgb(_from_array(source), "the array")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), f"the picture of {len(source)} bytes")
    if isinstance(source, os.PathLike) and not isinstance(source, Path):
        source = Path(source)
    if not isinstance(source, (str, Path)):
        raise ImageError("a picture cannot come from there", expected=ACCEPTED, found=type(source))
    stream, name = open_source(source)
    with stream:
        return _decode(stream, name)


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or not (
        array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    ):
        raise ImageError(
            "the array is no picture",
            expected="uint8 [height, width], or [height, width, 3 or 4] in RGB or RGBA",
            found=f"{array.dtype} {list(array.shape)}",
            fix="scale it to uint8 from 0 to 255 and put the channels last",
        )
    if array.size == 0:
        raise ImageError("the array has no pixels", expected="at least 1 x 1", found=array.shape)
    return Image.fromarray(np.ascontiguousarray(array))


def read_size(source: Path | bytes, *, upright: bool = False) -> tuple[int, int]:
    """Width and height of a picture file, from its header.

    Args:
        source: The file, or its bytes.
        upright: As the picture is seen. Its orientation may stand behind the pixels, which are
            decoded then.

    Raises:
        ImageError: if it cannot be opened, or is no picture.
    """
    if isinstance(source, Path):
        stream, name = open_source(source)
    else:
        stream, name = io.BytesIO(source), f"the picture of {len(source)} bytes"
    with stream, _decoding(name):
        return _open(stream, name, _upright_size if upright else lambda picture: picture.size)


def _upright_size(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    if isinstance(picture, TiffImageFile):  # Pillow has turned its size already
        width, height = (int(picture.tag_v2[tag]) for tag in (IMAGEWIDTH, IMAGELENGTH))
    return (height, width) if _orientation(picture) in _ON_THEIR_SIDE else (width, height)


def _decode(stream: BinaryIO, name: str) -> Image.Image:
    def decode(picture: Image.Image) -> Image.Image:
        _check_dimensions(picture, name)
        if picture.width * picture.height > _MAX_WORKING_PIXELS:
            picture.draft("RGB", (picture.width // 2, picture.height // 2))
        scale_transparent_level(picture)
        return _to_upright_rgb(picture, name)

    with _decoding(name):
        return _open(stream, name, decode)


def _open(stream: BinaryIO, name: str, read: Callable[[Image.Image], _Read]) -> _Read:
    """What ``read`` makes of a picture file, which may have damaged metadata."""
    head = stream.read(16)
    if not head:
        raise ImageError(f"{name} is empty", expected="a picture", found="0 bytes")
    stream.seek(0)
    _register_heif(head)
    try:
        return _read_with(stream, read)
    except (ImageError, Image.DecompressionBombError):
        raise
    except Exception:
        stream.seek(0)
        data = stream.read(MAX_STREAM_BYTES + 1)
        bare = without_metadata(data) if len(data) <= MAX_STREAM_BYTES else None
        if bare is None:
            raise
        return _read_with(io.BytesIO(bare), read)


def _read_with(stream: BinaryIO, read: Callable[[Image.Image], _Read]) -> _Read:
    with Image.open(stream) as picture:
        if picture.format in _PROGRAMS:
            raise ImageError(
                "a picture in a format that is a program is not run",
                expected="a format of pixels, such as JPEG, PNG or WebP",
                found=picture.format,
            )
        if not isinstance(picture.info.get("xmp", b""), bytes):  # a TIFF may give it any type
            del picture.info["xmp"]
        return read(picture)


def _register_heif(head: bytes) -> None:
    """Let Pillow read HEIC, the format of many telephones, which a package of its own adds."""
    if head[4:8] != b"ftyp" or head[8:12] not in _HEIF_BRANDS or ".heic" in Image.EXTENSION:
        return
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            "the picture is in HEIC format",
            expected="a format that Pillow reads, such as JPEG, PNG or WebP",
            found="HEIC, without the package that reads it",
            fix="pip install pillow-heif, or save the picture as JPEG",
        ) from error
    pillow_heif.register_heif_opener()


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
        # Large pictures and odd metadata are dealt with here; Pillow would write to stderr.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture",
            expected="a format that Pillow reads, such as JPEG, PNG or WebP",
            fix="convert it to JPEG or PNG; if it is one, it is damaged: get it again",
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_many_pixels(name, error) from error
    # Pillow's format readers raise whatever they trip over in a damaged file, from SyntaxError
    # to struct.error: each of them means the same to the user.
    except Exception as error:
        raise ImageError(
            f"{name} cannot be decoded",
            expected="a complete picture",
            found=str(error) or type(error).__name__,
            fix="the picture is damaged or cut off: get it again",
        ) from error


def _to_upright_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Check the dimensions before anything is decoded, then decode, convert and rotate."""
    _check_dimensions(picture, name)
    picture.load()  # which turns a TIFF: what its EXIF says before that is not true afterwards
    turn = _UPRIGHT.get(_orientation(picture))
    rgb = on_white(_eight_bits(picture, name))
    if rgb.width * rgb.height > _MAX_WORKING_PIXELS:
        rgb = rgb.reduce(2)
    if turn is not None:
        rgb = rgb.transpose(turn)
    if rgb is not picture:
        rgb.info = {}  # whoever reads the orientation there would turn it again
    return rgb


def _check_dimensions(picture: Image.Image, name: str) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_many_pixels(name, f"{picture.width} x {picture.height} pixels")
    if picture.width * picture.height == 0:
        raise ImageError(
            f"{name} has no pixels", expected="at least 1 x 1", found=f"{picture.size}"
        )


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 where there is none; everything else in EXIF is left unread."""
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    # Tags are read as whatever they claim to be: Pillow raises what it trips over, and none of
    # it says anything about the pixels.
    except Exception:
        return 1


def _eight_bits(picture: Image.Image, name: str) -> Image.Image:
    if picture.mode == "F":
        return _scale_floats(picture, name)
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _keep_high_byte(picture, name)
    return picture


def _scale_floats(picture: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(picture)
    lowest, highest = float(levels.min()), float(levels.max())
    if not (lowest >= 0 and highest <= 1):
        raise ImageError(
            f"{name} has grey levels whose scale is not known",
            expected="floats from 0 to 1",
            found=f"floats from {lowest:g} to {highest:g}",
            fix="scale it to 8 or 16 bits a channel",
        )
    return Image.fromarray(np.rint(levels * 255).astype(np.uint8))


def _keep_high_byte(picture: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(picture)
    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > np.iinfo(np.uint16).max:
        raise ImageError(
            f"{name} has grey levels of more than 16 bits",
            expected="levels from 0 to 65535",
            found=f"levels from {lowest} to {highest}",
            fix="scale it to 8 or 16 bits a channel",
        )
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        alpha = Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha))
    return grey


def _too_many_pixels(name: str, found: object) -> ImageError:
    return ImageError(
        f"{name} is too large to decode",
        expected=f"at most {MAX_PIXELS} pixels",
        found=found,
        fix="scale the picture down first",
    )
