"""A picture from wherever the user has it: a file, a URL, standard input, bytes or Pillow.

The result is upright (EXIF orientation applied) and RGB, pixel for pixel what transformers'
`load_image` returns, with one exception: pictures with 16 bits a channel in one grey channel
(Pillow modes `I;16`, `I;16B`, `I;16L`, `I;16N` and `I`, so also 16-bit greyscale PNG) are scaled
to 8 bits by keeping the high byte, as Pillow itself does for 16-bit colour. Converting them
directly, as transformers does, clips every value above 255 and returns a white picture.
"""

from __future__ import annotations

import contextlib
import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from divprune.runtime.errors import ImageError

__all__ = ["MAX_PIXELS", "MAX_STREAM_BYTES", "load_image"]

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: where Pillow stops as well unless it was told otherwise."""

MAX_STREAM_BYTES = 64 * 2**20
"""Most bytes taken from a URL, standard input or a pipe."""

_SOCKET_TIMEOUT_S = 20.0
_DOWNLOAD_TIMEOUT_S = 120.0
_USER_AGENT = "divprune-edge (Python urllib)"
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"
_ACCEPTED = "a picture file, an http(s) URL, or - for standard input"


def load_image(source: str | Path | bytes | Image.Image) -> Image.Image:
    """Return the picture at `source`, upright and in RGB.

    Args:
        source: A path, an `http://` or `https://` URL, `-` for standard input, the bytes of a
            picture file, or a Pillow image (which is left as it is).

    Returns:
        A new image of mode `RGB`. A transparent colour of the file (PNG `tRNS`) stays in
        `info["transparency"]`, where the image processor looks for it.

    Raises:
        ImageError: Nothing is there, it cannot be fetched, it is not a picture, it is damaged,
            or it has more than `MAX_PIXELS` pixels.
    """
    if isinstance(source, Image.Image):
        with _decoding("the Pillow image"):
            return _to_upright_rgb(source, "the Pillow image")
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"the picture of {len(source)} bytes")
    if not isinstance(source, (str, Path)):
        raise ImageError("a picture cannot come from there", expected=_ACCEPTED, found=type(source))
    if str(source) == "-":
        return _decode(io.BytesIO(_read_stdin()), "standard input")
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return _decode(io.BytesIO(_download(source)), source)
    return _load_file(Path(source))


def _load_file(path: Path) -> Image.Image:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", expected=_ACCEPTED) from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a directory", expected=_ACCEPTED) from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be opened", expected=_ACCEPTED, found=error) from error
    with file:
        stream = file if file.seekable() else io.BytesIO(_read_limited(file, str(path)))
        return _decode(stream, str(path))


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        raise ImageError(
            "there is no picture on standard input",
            expected="a picture file piped in",
            found="a terminal",
            fix="divprune-run ENGINE_DIR - < picture.jpg",
        )
    return _read_limited(sys.stdin.buffer, "standard input")


def _download(url: str) -> bytes:
    # With ssl and email behind it, this would be most of the module's import time.
    import http.client
    import urllib.error
    import urllib.parse
    import urllib.request

    reason: object
    try:
        request = urllib.request.Request(
            urllib.parse.quote(url, safe=_URL_SAFE), headers={"User-Agent": _USER_AGENT}
        )
        deadline = time.monotonic() + _DOWNLOAD_TIMEOUT_S
        with urllib.request.urlopen(request, timeout=_SOCKET_TIMEOUT_S) as response:
            return _read_limited(response, url, deadline)
    except urllib.error.HTTPError as error:
        reason = f"HTTP status {error.code} {error.reason}"
        error.close()
    except urllib.error.URLError as error:
        reason = error.reason
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
    raise ImageError(
        f"{url} cannot be fetched",
        expected="a picture behind that URL",
        found=reason,
        fix="check the URL and the network, or download the picture and pass its path",
    )


def _read_limited(stream: Any, name: str, deadline: float | None = None) -> bytes:
    """Read to the end, at most `MAX_STREAM_BYTES` and (a `time.monotonic`) `deadline`.

    `read1` returns what has arrived, so that a sender of one byte now and then, which never
    runs into the socket's timeout, still meets the deadline.
    """
    data = bytearray()
    while chunk := stream.read1(1 << 16):
        data += chunk
        if len(data) > MAX_STREAM_BYTES:
            raise ImageError(
                f"{name} is too long for a picture",
                expected=f"at most {MAX_STREAM_BYTES} bytes",
                found="more",
                fix="save it as a file and pass its path",
            )
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError(f"not complete after {_DOWNLOAD_TIMEOUT_S:.0f} s")
    return bytes(data)


def _decode(stream: BinaryIO, name: str) -> Image.Image:
    with _decoding(name):
        head = stream.read(16)
        if not head:
            raise ImageError(f"{name} is empty", expected="a picture", found="0 bytes")
        stream.seek(0)
        return _to_upright_rgb(Image.open(stream), name)


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    try:
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
    """Check the dimensions before anything is decoded, then decode, rotate and convert."""
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_many_pixels(name, f"{picture.width} x {picture.height} pixels")
    if picture.width * picture.height == 0:
        raise ImageError(
            f"{name} has no pixels", expected="at least 1 x 1", found=f"{picture.size}"
        )
    upright = ImageOps.exif_transpose(picture)
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        upright = _keep_high_byte(upright, name)
    # An alpha value for each palette entry is dropped by the conversion in any case: without
    # the entry Pillow does not warn about it.
    if isinstance(upright.info.get("transparency"), bytes):
        del upright.info["transparency"]
    return upright.convert("RGB")


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
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _too_many_pixels(name: str, found: object) -> ImageError:
    return ImageError(
        f"{name} is too large to decode",
        expected=f"at most {MAX_PIXELS} pixels",
        found=found,
        fix="scale the picture down first",
    )
