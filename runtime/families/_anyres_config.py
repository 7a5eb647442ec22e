"""The shape of a model with tiles from its ``config.json``, before it is exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from divprune.runtime.errors import CheckpointError
from divprune.runtime.families._anyres import Grids
from divprune.runtime.families._model_config import (
    TEXT_DEFAULTS,
    TOWER_DEFAULTS,
    read_clip_tower,
    read_count,
    read_packed,
    read_text,
    with_defaults,
)
from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["TYPICAL", "read_anyres_grids", "read_anyres_model"]

TYPICAL = (480, 640)  # height and width of an everyday picture


def read_anyres_model(
    name: str,
    content: Mapping[str, Any],
    *,
    text: str = "llama",
    tower: str = "clip_vision_model",
    defaults: Mapping[str, Any] | None = None,
) -> ModelDimensions:
    """Sizes of tower and decoder, and N of the largest picture and of a typical one.

    Args:
        name: What the user calls the model.
        content: ``config.json``; a preset has the part of it that matters.
        text: Kind of the decoder where none is named.
        tower: Kind of the tower where none is named.
        defaults: What the whole config has where it says nothing.

    Raises:
        UnsupportedError: for another text model or tower.
        CheckpointError: for a number or the grids that are missing or none.
    """
    content = {**(defaults or {}), **content}
    decoder = with_defaults(content, "text_config", TEXT_DEFAULTS, text)
    vision = with_defaults(content, "vision_config", TOWER_DEFAULTS, tower)
    info, _ = read_clip_tower(content, vision)
    grids = read_anyres_grids(content, vision)
    typical = grids.tiling(TYPICAL)
    tiles = [height * width // grids.side**2 for height, width in grids.pinpoints]
    return ModelDimensions(
        name,
        info,
        read_text(decoder),
        max(count for pinpoint in grids.pinpoints for count in grids.counts(pinpoint)),
        read_packed(content),
        grids.count(typical.grid),
        crops=1 + max(tiles),
        typical_crops=1 + typical.tiles[0] * typical.tiles[1],
    )


def read_anyres_grids(content: Mapping[str, Any], vision: Mapping[str, Any]) -> Grids:
    """The grids of tiles of a config whose vision part has its defaults already."""
    side, pinpoints = read_count(vision, "image_size"), content.get("image_grid_pinpoints")
    if not pinpoints or min(length for grid in pinpoints for length in grid) < side:
        raise CheckpointError(
            "config.json: image_grid_pinpoints is wrong",
            expected=f"pairs of a height and a width, each of at least {side} (one tile)",
            found=pinpoints,
        )
    ratio = str(content.get("vision_aspect_ratio", ""))
    most = ratio.removeprefix("anyres_max_")
    return Grids(
        side,
        read_count(vision, "patch_size"),
        tuple((height, width) for height, width in pinpoints),
        int(most) if most.isdecimal() else None,
    )
