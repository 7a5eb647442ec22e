"""Pictures of the patches that were kept, for the report."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from divprune.runtime.directory.keep import describe_keep
from divprune.runtime.errors import UnsupportedError
from divprune.runtime.generation.overlay import (
    PatchGrid,
    count_undrawn,
    draw_overlay,
    encode_overlay,
)
from divprune.runtime.inputs.image_processor import ImageProcessor
from divprune.runtime.reports.bench.layout import format_keep

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.reports.bench.report import Report

__all__ = ["draw_kept_patches"]

log = logging.getLogger(__name__)

_LARGEST_SIDE = 1024


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
    config = directory.file("preprocessor_config.json").read_text(encoding="utf-8")
    processor = ImageProcessor.from_config(json.loads(config))
    total = report.engine.num_image_tokens
    try:
        grid = PatchGrid.derive(total, processor.size)
    except UnsupportedError as error:
        log.warning("the report shows no kept patches: %s", error)
        return {}
    picture = image.copy()
    picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
    pictures = {}
    for run in report.runs:
        if run.num_kept < total:
            caption = f"keep {format_keep(run.keep)}: {describe_keep(run.num_kept, total)}"
            if undrawn := count_undrawn(picture.size, processor, grid, run.kept_indices):
                caption += f"; {undrawn} of them outside the picture (padding), not drawn"
            drawn = draw_overlay(picture, processor, grid, run.kept_indices)
            pictures[caption] = encode_overlay(drawn, ".jpg")
    return pictures
