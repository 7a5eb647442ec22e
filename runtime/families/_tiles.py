"""What families have in common that cut a picture into square crops of one size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families.protocol import TokenMap
from divprune.runtime.inputs.levels import LevelTable

__all__ = [
    "check_processor",
    "cut",
    "frame_map",
    "grid_boxes",
    "image_options",
    "level_table",
    "require",
    "resample_filter",
    "tile_map",
    "video_options",
]

_ALWAYS_ON = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")


def level_table(config: Mapping[str, Any]) -> LevelTable:
    """Read an image processor's config.

    Raises:
        CheckpointError: if it does not say the mean or the standard deviation. Defaults
            differ between families and from their checkpoints: none is assumed.
        UnsupportedError: if a step is turned off, or a value cannot be used.
    """
    for flag in _ALWAYS_ON:
        if config.get(flag, True) is False:
            raise UnsupportedError(f"image processor option {flag} is off", expected="true")
    factor = _numbers("rescale_factor", config.get("rescale_factor", 1 / 255), 1)[0]
    mean = _numbers("image_mean", require(config, "image_mean"), 3)
    std = _numbers("image_std", require(config, "image_std"), 3)
    if 0.0 in std:
        raise _bad_option("image_std", "numbers other than 0", std)
    return LevelTable(factor, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def image_options(preprocessor: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options for pictures, which transformers 5 may nest."""
    nested = preprocessor.get("image_processor")
    return nested if isinstance(nested, Mapping) else preprocessor


def check_processor(options: Mapping[str, Any], kinds: Sequence[str]) -> None:
    """Hold the image processor that a checkpoint names against those that cut as its model does.

    Raises:
        UnsupportedError: for another one.
    """
    name = str(options.get("image_processor_type"))
    if name.removesuffix("Fast").removesuffix("Pil") not in kinds:
        raise UnsupportedError(
            f"image processor {name} is not supported with this model",
            expected=" or ".join(kinds),
            found=name,
            fix="copy preprocessor_config.json of the original model into the checkpoint",
        )


def video_options(preprocessor: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options for videos: what the checkpoint says about them over those for pictures."""
    nested = preprocessor.get("video_processor")
    stated = nested if isinstance(nested, Mapping) else {}
    given = {key: value for key, value in stated.items() if value is not None}
    return {**image_options(preprocessor), **given}


def require(config: Mapping[str, Any], key: str) -> Any:
    """The value of an option that must be stated.

    Raises:
        CheckpointError: if it is missing or null.
    """
    value = config.get(key)
    if value is None:
        raise CheckpointError(
            f"the image processor's config does not say {key}",
            expected=f"{key} in preprocessor_config.json",
            found="the keys " + ", ".join(sorted(map(str, config))),
            fix="copy preprocessor_config.json of the original model into the checkpoint",
        )
    return value


def resample_filter(config: Mapping[str, Any]) -> int:
    """Pillow's number of the filter that pictures are resized with."""
    value = require(config, "resample")
    known = {int(filter_) for filter_ in Image.Resampling}
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        raise _bad_option("resample", f"one of Pillow's filters {sorted(known)}", value)
    return value


def cut(picture: Image.Image, columns: int, rows: int, side: int) -> list[Image.Image]:
    """Crops of ``side`` x ``side`` pixels, row by row."""
    return [
        picture.crop((side * column, side * row, side * (column + 1), side * (row + 1)))
        for row in range(rows)
        for column in range(columns)
    ]


def grid_boxes(width: float, height: float, columns: int, rows: int) -> npt.NDArray[np.float32]:
    """Left, top, right, bottom of the cells of a grid over a picture, row by row [cells, 4]."""
    x = np.linspace(0.0, width, columns + 1)
    y = np.linspace(0.0, height, rows + 1)
    top, left = np.meshgrid(y[:-1], x[:-1], indexing="ij")
    bottom, right = np.meshgrid(y[1:], x[1:], indexing="ij")
    boxes = np.stack([left, top, right, bottom], axis=-1)
    return boxes.reshape(-1, 4).astype(np.float32)


def tile_map(width: int, height: int, columns: int, rows: int, side: int) -> TokenMap:
    """Tokens of ``columns`` x ``rows`` tiles, row by row, then those of the whole picture.

    A tile and the whole have ``side`` x ``side`` tokens each. Without tiles (0 x 0) the whole
    picture is all there is.
    """
    whole = grid_boxes(width, height, side, side)
    cells = grid_boxes(width, height, columns * side, rows * side)
    tiles = cells.reshape(rows, side, columns, side, 4).transpose(0, 2, 1, 3, 4).reshape(-1, 4)
    names = ("tiles", "whole") if len(tiles) else ("whole",)
    panels = np.repeat(np.arange(len(names)), [len(part) for part in (tiles, whole) if len(part)])
    return TokenMap(np.concatenate([tiles, whole]), panels.astype(np.int64), names)


def frame_map(width: int, height: int, frames: int, side: int) -> TokenMap:
    """Tokens of frames that are resized to one crop each."""
    boxes = np.tile(grid_boxes(width, height, side, side), (frames, 1))
    panels = np.repeat(np.arange(frames, dtype=np.int64), side * side)
    return TokenMap(boxes, panels, tuple(f"frame {number + 1}" for number in range(frames)))


def _numbers(name: str, value: object, count: int) -> list[float]:
    """``count`` finite numbers; a single one counts for all."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    numbers = [each for each in values if isinstance(each, (int, float))]
    if len(values) != count or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise _bad_option(name, f"{count} numbers" if count > 1 else "a number", value)
    return [float(number) for number in numbers]


def _bad_option(name: str, expected: object, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"image processor option {name} has a value that is not supported",
        expected=expected,
        found=found,
    )
