"""Patches of pictures and frames as Qwen's vision towers take them.

A picture is resized to a multiple of the merged patch (``factor`` pixels a side) and cut into
patches. Rows are block-major: the ``merge`` x ``merge`` patches of a merged token stand together,
and merged tokens follow one another in raster order. A row is channels x time x height x width of
a patch; a picture fills both moments of time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.errors import CheckpointError, ImageError, UnsupportedError
from divprune.runtime.inputs.image_processor import ImageProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["PatchProcessor", "PixelRange", "block_major", "fit_size"]

_MAX_ASPECT = 200
_MAX_AREA = 1 << 40  # of all frames of a video together
_IMAGE_TYPES = ("Qwen2VLImageProcessor",)
_VIDEO_TYPES = ("Qwen2VLVideoProcessor", "Qwen3VLVideoProcessor")
_CLIP_STATISTICS = {
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_HALVES = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
# What transformers takes where a file is silent.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "Qwen2VLImageProcessor": {
        "patch_size": 14,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        **_CLIP_STATISTICS,
    },
    "Qwen2VLVideoProcessor": {
        "patch_size": 14,
        "size": {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768},
        **_CLIP_STATISTICS,
    },
    "Qwen3VLVideoProcessor": {
        "patch_size": 16,
        "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
        **_HALVES,
    },
}


@dataclass(frozen=True)
class PixelRange:
    """Smallest and largest area of a resized picture, in pixels."""

    smallest: int
    largest: int

    def at_most(self, largest: int) -> PixelRange:
        """The same with a bound of its own; the smallest area gives way."""
        largest = min(self.largest, largest)
        return PixelRange(min(self.smallest, largest), largest)


def fit_size(
    width: int, height: int, factor: int, area: PixelRange, frames: tuple[int, int] = (1, 1)
) -> tuple[int, int]:
    """Width and height that a picture is resized to: multiples of ``factor`` within ``area``.

    Args:
        width: Of the picture.
        height: Of the picture.
        factor: Pixels of a side of a merged patch.
        area: What the area may be.
        frames: Where the area of all frames together counts: their number as it is compared
            with ``area``, and as it scales (they differ for an odd number).

    Raises:
        ImageError: if one side is more than 200 times the other.
    """
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise ImageError(
            "the picture is too elongated for this model",
            expected=f"sides that differ by a factor of at most {_MAX_ASPECT}",
            found=f"{width} x {height}",
            fix="crop the picture first",
        )
    rounded, count = frames
    # Python's round is half to even, and so is that of the models' processors.
    columns, rows = round(width / factor), round(height / factor)
    pixels = rounded * rows * columns * factor**2
    if pixels > area.largest:
        shrink = math.sqrt(count * height * width / area.largest)
        columns = max(1, math.floor(width / shrink / factor))
        rows = max(1, math.floor(height / shrink / factor))
    elif pixels < area.smallest:
        grow = math.sqrt(area.smallest / (count * height * width))
        columns, rows = math.ceil(width * grow / factor), math.ceil(height * grow / factor)
    return columns * factor, rows * factor


def block_major(values: NDArray[Any], merge: int) -> NDArray[Any]:
    """[rows, columns, ...] of patches as [merged tokens, merge * merge, ...]."""
    rows, columns, *rest = values.shape
    blocks = values.reshape(rows // merge, merge, columns // merge, merge, *rest)
    return blocks.swapaxes(1, 2).reshape(-1, merge * merge, *rest)


@dataclass(frozen=True)
class PatchProcessor:
    """Cuts pictures or frames into rows.

    Attributes:
        pixels: Resizing, rescaling and normalising, for a size that each picture decides.
        area: What ``preprocessor_config.json`` allows a resized picture to have.
        patch: Side of a patch.
        merge: Patches of a side of a merged token.
        moments: Frames that one row holds.
    """

    pixels: ImageProcessor
    area: PixelRange
    patch: int
    merge: int
    moments: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any], facts: Mapping[str, Any]) -> PatchProcessor:
        """Read an image or video processor's config, and hold it against the model's facts.

        Raises:
            UnsupportedError: for another processor, or an option that cannot be carried out.
            CheckpointError: if it cuts other patches than the tower takes.
        """
        kind = _kind(config)
        options = {**_DEFAULTS[kind], **config}
        for name, default in (("patch_size", None), ("merge_size", 2), ("temporal_patch_size", 2)):
            found = options.get(name, default)
            if found != facts[name]:
                raise CheckpointError(
                    f"{kind} and vision tower do not fit each other",
                    expected=f"{name} {facts[name]}, from config.json",
                    found=f"{found}, from the processor's config",
                )
        for name in ("do_resize", "do_rescale", "do_normalize"):
            if options.get(name, True) is not True:
                raise UnsupportedError(
                    f"option {name} of {kind} has a value that is not supported",
                    expected=True,
                    found=options[name],
                )
        factor = facts["patch_size"] * facts["merge_size"]
        plain = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"height": factor, "width": factor},
            "do_center_crop": False,
        }
        names = ("resample", "rescale_factor", "image_mean", "image_std", "do_convert_rgb")
        given = {name: options[name] for name in names if options.get(name) is not None}
        return cls(
            ImageProcessor.from_config(plain | given),
            _area(options, kind),
            facts["patch_size"],
            facts["merge_size"],
            facts["temporal_patch_size"],
        )

    @property
    def factor(self) -> int:
        """Pixels of a side of a merged token."""
        return self.patch * self.merge

    def rows(self, frames: Sequence[Image.Image], size: tuple[int, int]) -> NDArray[np.float32]:
        """Rows of frames resized to ``size`` (width, height).

        Returns:
            float32 [steps, merged tokens, merge * merge * row], a step of time holding
            ``moments`` frames; the last frame is repeated where some are missing.
        """
        process = replace(self.pixels, resize_to=(size[1], size[0]))
        steps = -(-len(frames) // self.moments)
        cells = size[0] * size[1] // self.factor**2
        rows = np.empty(
            (steps, cells, self.merge**2, 3, self.moments, self.patch, self.patch), np.float32
        )
        last = len(frames) - 1
        for number, frame in enumerate(frames):
            patches = process.levels.patches(process.fit(frame), self.patch, self.merge)
            end = steps * self.moments if number == last else number + 1
            for moment in range(number, end):
                rows[moment // self.moments, :, :, :, moment % self.moments] = patches
        return rows.reshape(steps, cells, -1)


def _kind(config: Mapping[str, Any]) -> str:
    name = config.get("video_processor_type") or config.get("image_processor_type")
    kind = str(name).removesuffix("Fast").removesuffix("Pil")
    if kind not in _DEFAULTS:
        raise UnsupportedError(
            f"processor {name} is not supported with this model"
            if name
            else "the config does not name its processor",
            expected=" or ".join((*_IMAGE_TYPES, *_VIDEO_TYPES)),
            found=name or f"the keys {', '.join(map(str, config)) or '(none)'}",
        )
    return kind


def _area(options: Mapping[str, Any], kind: str) -> PixelRange:
    """``size`` of transformers 5, or ``min_pixels`` and ``max_pixels``; areas, despite the name."""
    given = options.get("size") or {}
    size = {**_DEFAULTS[kind]["size"], **(given if isinstance(given, Mapping) else {})}
    smallest = options.get("min_pixels") or size.get("min_pixels") or size["shortest_edge"]
    largest = options.get("max_pixels") or size.get("max_pixels") or size["longest_edge"]
    areas = (smallest, largest)
    if not (
        isinstance(given, Mapping)
        and all(type(area) in (int, float) and area < _MAX_AREA for area in areas)
        and 1 <= smallest <= largest
    ):
        raise UnsupportedError(
            f"option size of {kind} has a value that is not supported",
            expected="shortest_edge (smallest area) and longest_edge (largest area), 1 pixel to "
            f"{_MAX_AREA}, in this order",
            found=f"{smallest} and {largest}" if isinstance(given, Mapping) else given,
        )
    return PixelRange(int(smallest), int(largest))
