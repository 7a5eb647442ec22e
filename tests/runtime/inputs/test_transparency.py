"""One level or colour of a PNG that is transparent, at every depth."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.inputs.image_loading import load_image
from divprune.runtime.inputs.transparency import on_white
from tests.runtime.inputs.test_image_loading import chunk, png

MAGENTA = (0xFFFF, 0, 0xFFFF)
# Depth, colour type, a row of a transparent pixel and a black one, what is transparent.
KEYED = {
    "1 bit": (1, 0, bytes([0b1000_0000]), (1,)),
    "2 bits": (2, 0, bytes([0b0100_0000]), (1,)),
    "2 bits, the third level": (2, 0, bytes([0b1000_0000]), (2,)),
    "4 bits": (4, 0, bytes([0x70]), (7,)),
    "8 bits": (8, 0, bytes([7, 0]), (7,)),
    "16 bits": (16, 0, struct.pack(">2H", 0x1234, 0), (0x1234,)),
    "colour of 8 bits": (8, 2, bytes([255, 0, 255, 0, 0, 0]), (255, 0, 255)),
    "colour of 16 bits": (16, 2, struct.pack(">6H", *MAGENTA, 0, 0, 0), MAGENTA),
    "dark colour of 16 bits": (16, 2, struct.pack(">6H", 0x1234, 1, 2, 0, 0, 0), (0x1234, 1, 2)),
}


@pytest.mark.parametrize("name", KEYED)
def test_the_transparent_level_is_white_and_the_others_are_not(name: str) -> None:
    depth, colour_type, row, level = KEYED[name]
    transparent = chunk(b"tRNS", struct.pack(f">{len(level)}H", *level))
    picture = load_image(png(2, 1, depth, colour_type, b"\0" + row, transparent))
    assert np.asarray(picture)[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_a_mode_with_alpha_is_put_on_white(mode: str) -> None:
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 0)).convert("LA" if mode == "La" else "RGBA")
    assert np.asarray(on_white(picture.convert(mode))).min() == 255


def test_what_is_opaque_is_given_back_itself() -> None:
    picture = Image.new("RGB", (2, 1))
    assert on_white(picture) is picture
