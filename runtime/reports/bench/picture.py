"""The picture that is measured when none is given, and the facts that identify one."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.reports.bench.report import ImageFacts

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["BUILT_IN", "built_in_picture", "image_facts"]

BUILT_IN = "built-in"
_WIDTH, _HEIGHT = 640, 480
_SHAPES = 12
_NOISE = 24


def built_in_picture() -> Image.Image:
    """A colour gradient with rectangles and discs under fine noise, the same everywhere."""
    from PIL import Image

    random = np.random.RandomState(0)  # its numbers are frozen, unlike default_rng's
    y, x = np.mgrid[:_HEIGHT, :_WIDTH]
    pixels = np.stack([x * 255 // _WIDTH, y * 255 // _HEIGHT, (x + y) % 256], axis=-1)
    for shape in range(_SHAPES):
        radius = random.randint(20, 90)
        left, top = random.randint(0, _WIDTH), random.randint(0, _HEIGHT)
        disc = (x - left) ** 2 + (y - top) ** 2 < radius**2
        square = (abs(x - left) < radius) & (abs(y - top) < radius // 2)
        pixels[disc if shape % 2 else square] = random.randint(0, 256, 3)
    pixels += random.randint(-_NOISE, _NOISE + 1, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def image_facts(source: str, image: Image.Image) -> ImageFacts:
    """Name, size and hash of a decoded RGB picture."""
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return ImageFacts(source, image.width, image.height, digest)
