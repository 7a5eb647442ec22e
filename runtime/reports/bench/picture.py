"""Pictures of a report: the one that is measured where none is given, and what of it was kept."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.directory.keep import describe_keep
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families import load_family
from divprune.runtime.generation.overlay import count_undrawn, draw_overlay, encode_overlay
from divprune.runtime.reports.bench.layout import format_keep
from divprune.runtime.reports.bench.report import ImageFacts

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.reports.bench.report import Report

__all__ = ["BUILT_IN", "built_in_picture", "draw_kept_patches", "image_facts"]

log = logging.getLogger(__name__)

BUILT_IN = "built-in"
_WIDTH, _HEIGHT = 640, 480
_SHAPES = 12
_NOISE = 24
_LARGEST_SIDE = 1024


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


def draw_kept_patches(
    report: Report, directory: EngineDirectory, image: Image.Image
) -> dict[str, bytes]:
    """One JPEG file for each fraction below 1.0, by its caption, which tells what is not drawn.

    Args:
        report: What was measured.
        directory: The engine directory that was measured.
        image: The picture that was measured.

    Returns:
        Nothing where it is not known which patch a visual token stands for.
    """
    total = report.engine.num_image_tokens
    try:
        token_map = load_family(directory).prepare_image(image).token_map()
    except UnsupportedError as error:
        log.warning("the report shows no kept patches: %s", error)
        return {}
    picture = image.copy()
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    shrink = np.float32(picture.width / image.width)
    token_map = replace(token_map, boxes=token_map.boxes * shrink)
    pictures = {}
    for run in report.runs:
        if run.num_kept < total:
            caption = f"keep {format_keep(run.asked)}: {describe_keep(run.num_kept, total)}"
            if undrawn := count_undrawn(token_map, run.kept_indices):
                caption += f"; {undrawn} of them outside the picture (padding), not drawn"
            drawn = draw_overlay(picture, token_map, run.kept_indices)
            pictures[caption] = encode_overlay(drawn, ".jpg")
    return pictures
