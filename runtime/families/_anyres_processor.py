"""The image and video processors of LLaVA-1.6, LLaVA-NeXT-Video and LLaVA-OneVision.

What they do to one crop or frame are the steps of CLIP's processor; how a picture becomes crops
stands in ``_anyres``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.inputs.image_processor import ImageProcessor

__all__ = ["Processors"]

_NEXT_SIZE = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
_NEXT_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_ONEVISION_SIZE = {
    "size": {"height": 384, "width": 384},
    "crop_size": None,
    "do_center_crop": None,
}
_ONEVISION_GRIDS = tuple((384 * rows, 384 * cols) for rows in range(1, 7) for cols in range(1, 7))
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "LlavaNextImageProcessor": {**_NEXT_SIZE, "image_grid_pinpoints": _NEXT_GRIDS},
    "LlavaNextVideoImageProcessor": {**_NEXT_SIZE, "image_grid_pinpoints": _NEXT_GRIDS},
    "LlavaOnevisionImageProcessor": {**_ONEVISION_SIZE, "image_grid_pinpoints": _ONEVISION_GRIDS},
    "LlavaNextVideoVideoProcessor": _NEXT_SIZE,
    "LlavaOnevisionVideoProcessor": _ONEVISION_SIZE,
}
# Padding in these configs is that of a batch of pictures; do_pad of _SQUARE is another one.
_OF_THE_BATCH = ("do_pad", "pad_size", "image_processor_type", "video_processor_type")


@dataclass(frozen=True)
class Processors:
    """What makes pixels.

    Attributes:
        crop: Of one crop.
        square: Of one picture that is not cut, padded to a square in the colour of the mean.
        frame: Of one frame of a video.
    """

    crop: ImageProcessor
    square: ImageProcessor
    frame: ImageProcessor

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], side: int, pinpoints: Sequence[tuple[int, int]]
    ) -> Processors:
        """Read ``preprocessor_config.json``; frames are treated as pictures where it has no more.

        Args:
            config: Its content, with a video processor's under ``video_processor``.
            side: Side of the tower's input in pixels.
            pinpoints: Grids of config.json.

        Raises:
            UnsupportedError: if a type or the value of an option is not supported.
            CheckpointError: if sizes or grids are not those of config.json.
        """
        nested = config.get("image_processor")
        image = _options(nested if isinstance(nested, Mapping) else config)
        grids = [tuple(grid) for grid in image["image_grid_pinpoints"]]
        if grids != [tuple(grid) for grid in pinpoints]:
            raise _disagreement("image_grid_pinpoints", list(pinpoints), grids)
        video = config.get("video_processor")
        frame = image if not isinstance(video, Mapping) else _options(video)
        square = {**image, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
        return cls(
            crop=_processor(image, side),
            square=ImageProcessor.from_config(square),
            frame=_processor(frame, side),
        )


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as one of CLIP's processor, with the defaults of its own."""
    name = str(config.get("image_processor_type") or config.get("video_processor_type"))
    kind = name.removesuffix("Fast").removesuffix("Pil")
    if kind not in _DEFAULTS:
        raise UnsupportedError(
            f"image processor {name} is not supported with this model",
            expected=", ".join(_DEFAULTS),
            found=name,
        )
    given = {key: value for key, value in config.items() if key not in _OF_THE_BATCH}
    return {**_DEFAULTS[kind], **given, "image_processor_type": "CLIPImageProcessor"}


def _processor(options: Mapping[str, Any], side: int) -> ImageProcessor:
    processor = ImageProcessor.from_config(options)
    sizes = {"size": processor.resize_to, "the output": processor.size}
    for name, size in sizes.items():
        if size not in (side, (side, side)):
            raise _disagreement(name, f"{side} x {side} pixels, the tower's", size)
    return processor


def _disagreement(name: str, expected: object, found: object) -> CheckpointError:
    return CheckpointError(
        f"image processor and vision tower do not fit each other: {name}",
        expected=f"{expected}, from config.json",
        found=f"{found}, from preprocessor_config.json",
    )
