"""Where in each picture the kept tokens lie, for whoever draws them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.generation.result import ImageResult
    from divprune.runtime.pipeline import Pipeline

__all__ = ["describe_pruning", "kept_boxes"]

_DIGITS = 4


def describe_pruning(
    pipeline: Pipeline, pictures: Sequence[Any] | None, images: Sequence[ImageResult]
) -> list[dict[str, Any]]:
    """What a client is told about each picture and video.

    Args:
        pipeline: Which knows where tokens lie.
        pictures: The pictures themselves where their kept boxes are wanted; bytes of videos have
            none.
        images: What became of them.
    """
    described = []
    for number, image in enumerate(images):
        record: dict[str, Any] = {
            "kind": image.kind,
            "num_image_tokens": image.num_image_tokens,
            "num_kept": image.num_kept,
            "cover": None if image.cover is None else round(image.cover, _DIGITS),
            "note": image.note,
        }
        if pictures is not None:
            record["order"] = list(image.selection_order or image.kept_indices)
            is_picture = not isinstance(pictures[number], bytes)
            record["boxes"] = kept_boxes(pipeline, pictures[number], image) if is_picture else None
        described.append(record)
    return described


def kept_boxes(
    pipeline: Pipeline, picture: Image.Image, pruning: ImageResult
) -> list[list[float] | None] | None:
    """Boxes of the kept tokens, in the order of selection where there is one.

    Args:
        pipeline: Which knows where tokens lie.
        picture: Upright, as it was given.
        pruning: What became of it.

    Returns:
        For each token left, top, right and bottom as fractions of the picture, None for one that
        stands for no place in it; None where it is not known where tokens lie.
    """
    from divprune.runtime.errors import UnsupportedError

    try:
        places = pipeline.family.prepare_image(picture, pruning.num_media).token_map().boxes
    except UnsupportedError:
        return None
    order = np.array(pruning.selection_order or pruning.kept_indices, np.int64)
    boxes = places[order].astype(np.float64) / np.array([*picture.size, *picture.size])
    known = ~np.isnan(boxes[:, 0])
    rounded = boxes.round(_DIGITS).tolist()
    return [box if place else None for box, place in zip(rounded, known, strict=True)]
