"""Damaged blocks beside the pixels do not keep a picture from being read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import ImageError
from divprune.runtime.inputs.image_loading import load_image
from divprune.runtime.inputs.picture_blocks import without_metadata
from tests.runtime.inputs.test_image_loading import chunk, noise, png, rotated, saved

PLAIN = Image.fromarray(noise(23, 11))
PIXELS = np.asarray(PLAIN)
MANY = zlib.compress(bytes(3 * 2**20))  # more than Pillow unpacks of a text

CHUNKS = {
    "packed text of 3 MB": chunk(b"zTXt", b"a\0\0" + MANY),
    "international text of 3 MB": chunk(b"iTXt", b"a\0\1\0\0\0" + MANY),
    "profile of 3 MB": chunk(b"iCCP", b"a\0\0" + MANY),
    "text packed in an unknown way": chunk(b"zTXt", b"a\0\5junk"),
    "profile without content": chunk(b"iCCP", b""),
    "gamma cut off": chunk(b"gAMA", b""),
    "chromaticities cut off": chunk(b"cHRM", b"ab"),
    "rendering intent cut off": chunk(b"sRGB", b""),
    "dots per inch cut off": chunk(b"pHYs", b"a"),
    "animation control cut off": chunk(b"acTL", b"\0"),
    "frame beyond the picture": chunk(b"fcTL", struct.pack(">5I", 0, 99, 99, 9, 9) + bytes(6)),
    "text with another checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"\0",
    "time with another checksum": chunk(b"tIME", bytes(7))[:-1] + b"\1",
}


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_damaged_chunk_of_a_png_is_passed_over(name: str, behind: bool) -> None:
    data, place = saved(PLAIN), -12 if behind else 33
    picture = load_image(data[:place] + CHUNKS[name] + data[place:])
    assert np.array_equal(np.asarray(picture), PIXELS)


TRANSPARENCY = {
    # Colour type, palette, transparency; white is what is transparent, black what is not.
    "more entries than colours": (3, bytes(6), b"\0\xff" + bytes(300), [255, 0]),
    "fewer entries than colours": (3, bytes(6), b"\0", [255, 0]),
    "no entries": (3, bytes(6), b"", [0, 0]),
    "a level cut off": (0, None, b"\0", [0, 1]),
    "a level that is too long": (0, None, b"\0\0\0", [255, 1]),
}


@pytest.mark.parametrize("name", TRANSPARENCY)
def test_transparency_of_another_length_is_used_as_far_as_it_goes(name: str) -> None:
    colour_type, palette, levels, expected = TRANSPARENCY[name]
    extra = b"" if palette is None else chunk(b"PLTE", palette)
    data = png(2, 1, 8, colour_type, b"\0\0\1", extra + chunk(b"tRNS", levels))
    assert np.asarray(load_image(data))[0, :, 0].tolist() == expected


SEGMENTS = {
    "profile cut off": (0xE2, b"ICC_PROFILE\0"),
    "JFIF cut off": (0xE0, b"JFIF\0"),
    "Adobe cut off": (0xEE, b"Adobe"),
    "several pictures that are not there": (0xE2, b"MPF\0II*\0\x08\0\0\0\1\0"),
    "Photoshop block cut off": (0xED, b"Photoshop 3.0\x008BIM\4\4\5abc"),
    "XMP in another alphabet": (0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe"),
    "no content": (0xE5, b""),
    "comment": (0xFE, b"\xff" * 9),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_damaged_segment_of_a_jpeg_is_passed_over(name: str) -> None:
    marker, content = SEGMENTS[name]
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    data = saved(PLAIN, "JPEG")
    picture = load_image(data[:2] + segment + data[2:])
    assert np.array_equal(np.asarray(picture), np.asarray(load_image(data)))


@pytest.mark.parametrize(
    ("kind", "block"),
    [
        ("PNG", lambda data: data[:33] + CHUNKS["gamma cut off"] + data[33:]),
        ("JPEG", lambda data: data[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + data[2:]),
    ],
)
def test_the_orientation_stays_where_other_blocks_are_left_out(
    kind: str, block: Callable[[bytes], bytes]
) -> None:
    whole = rotated(6, kind)
    picture = load_image(block(whole))
    assert picture.size == (11, 23)
    assert np.array_equal(np.asarray(picture), np.asarray(load_image(whole)))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_that_is_cut_off_is_still_refused(kind: str) -> None:
    data = saved(PLAIN, kind)
    for length in range(1, len(data) - 20, 37):
        without_metadata(data[:length])
        with pytest.raises(ImageError):
            load_image(data[:length])


@pytest.mark.parametrize("data", [b"", b"GIF89a", saved(PLAIN, "WEBP"), saved(PLAIN, "TIFF")])
def test_other_files_are_left_alone(data: bytes) -> None:
    assert without_metadata(data) is None
