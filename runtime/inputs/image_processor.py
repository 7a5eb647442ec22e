"""Pixels for the vision tower: what `preprocessor_config.json` says, with Pillow and NumPy.

Covers the image processors of the LLaVA-1.5 family (CLIP, SigLIP, LLaVA with padding to a
square), in the order and with the rounding of transformers' Pillow backend, so that the values
are the same to the last bit:

    RGB  ->  pad to square  ->  resize  ->  centre crop  ->  rescale  ->  normalise

Where each pixel of the result comes from is computed in one place, `ImageProcessor.geometry`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from PIL import Image

from divprune.runtime.errors import ImageError, UnsupportedError
from divprune.runtime.inputs.image_loading import MAX_PIXELS
from divprune.runtime.inputs.levels import LevelTable
from divprune.runtime.inputs.resizing import resize
from divprune.runtime.inputs.transparency import on_white

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Geometry", "ImageProcessor"]

_BICUBIC = 3

_CLIP_DEFAULTS: dict[str, Any] = {
    "do_convert_rgb": True,
    "do_pad": False,
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "resample": _BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}
_SIGLIP_DEFAULTS = _CLIP_DEFAULTS | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "crop_size": None,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_DEFAULTS = {
    "CLIPImageProcessor": _CLIP_DEFAULTS,
    "SiglipImageProcessor": _SIGLIP_DEFAULTS,
    "LlavaImageProcessor": _CLIP_DEFAULTS,
}


@dataclass(frozen=True)
class Geometry:
    """How one picture becomes the output. Every pair is (horizontal, vertical), in pixels.

    Attributes:
        picture: Size of the upright picture.
        padded: Its size after padding to a square; equal to `picture` without padding.
        pad_offset: Where the picture's top left corner lies in the padded one.
        resized: Size after resizing.
        crop_offset: Where the output's top left corner lies in the resized picture; negative
            where the resized picture is smaller and is framed in black.
        output: Size of the output.
    """

    picture: tuple[int, int]
    padded: tuple[int, int]
    pad_offset: tuple[int, int]
    resized: tuple[int, int]
    crop_offset: tuple[int, int]
    output: tuple[int, int]

    def to_picture(self, x: float, y: float) -> tuple[float, float]:
        """Map a point of the output to the picture; outside of it where padding was added.

        Points are continuous: (0, 0) is the corner of the first pixel, (0.5, 0.5) its centre.
        """
        horizontal, vertical = (
            (point + crop) * padded / resized - pad
            for point, crop, padded, resized, pad in zip(
                (x, y), self.crop_offset, self.padded, self.resized, self.pad_offset, strict=True
            )
        )
        return horizontal, vertical


@dataclass(frozen=True)
class ImageProcessor:
    """Turns a picture into `pixel_values`.

    Attributes:
        resize_to: (height, width), or the length of the shorter edge, or None: not resized.
        crop_size: (height, width) of the centre crop, or None: not cropped.
        background: 8-bit colour in which the picture is first padded to a square, or None.
        resample: Pillow's number of the resampling filter.
        convert_rgb: Whether other modes than RGB are converted, transparency onto white.
        rescale_factor: What the 8-bit levels are multiplied with, or None.
        mean: Subtracted from each channel after rescaling.
        std: What each channel is divided by after that.
    """

    resize_to: tuple[int, int] | int | None
    crop_size: tuple[int, int] | None
    background: tuple[int, int, int] | None
    resample: int
    convert_rgb: bool
    rescale_factor: float | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Refuse a processor whose output size depends on the picture."""
        if self._fixed_size() is None:
            raise UnsupportedError(
                "the image processor's output size depends on the picture",
                expected="do_center_crop, or do_resize with a fixed size {height, width}",
                found=f"do_center_crop off, size {self.resize_to or 'not set (do_resize off)'}",
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        """Read the content of `preprocessor_config.json`, in any of its spellings.

        A `processor_config.json` with that content under `image_processor` is taken as well.
        A missing option has its processor's default and null means off, as in transformers;
        options that transformers does not know are without effect there and here.

        Raises:
            UnsupportedError: The processor's type or the value of an option is not supported.
        """
        nested = config.get("image_processor")
        config = nested if isinstance(nested, Mapping) else config
        kind = _processor_type(config)
        options = {**_DEFAULTS[kind], **config}
        _refuse_unsupported(kind, options)
        normalize, rescale = _flag(options, "do_normalize"), _flag(options, "do_rescale")
        pad = kind == "LlavaImageProcessor" and _flag(options, "do_pad")
        return cls(
            resize_to=_resize_target(options) if _flag(options, "do_resize") else None,
            crop_size=_crop_size(options) if _flag(options, "do_center_crop") else None,
            background=_background(options) if pad else None,
            resample=_resample(options) if _flag(options, "do_resize") else _BICUBIC,
            convert_rgb=_flag(options, "do_convert_rgb"),
            rescale_factor=_number(options, "rescale_factor") if rescale else None,
            mean=_channels(options, "image_mean") if normalize else (0.0, 0.0, 0.0),
            std=_std(options) if normalize else (1.0, 1.0, 1.0),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output of every picture."""
        size = self._fixed_size()
        assert size is not None  # __post_init__ saw to it
        return size

    def geometry(self, width: int, height: int) -> Geometry:
        """Say where the output of a `width` x `height` picture comes from.

        Raises:
            ImageError: The picture has no pixels, or is so elongated that padding or resizing
                it would take more than `MAX_PIXELS`.
        """
        if width < 1 or height < 1:
            raise ImageError("the picture has no pixels", found=f"{width} x {height}")
        side = max(width, height)
        padded = (width, height) if self.background is None else (side, side)
        resized = self._resized(*padded)
        for step in (padded, resized):
            _check_pixels(step, (width, height))
        output = resized if self.crop_size is None else (self.crop_size[1], self.crop_size[0])
        return Geometry(
            picture=(width, height),
            padded=padded,
            pad_offset=((padded[0] - width) // 2, (padded[1] - height) // 2),
            resized=resized,
            crop_offset=((resized[0] - output[0]) // 2, (resized[1] - output[1]) // 2),
            output=output,
        )

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """Return the `pixel_values` of one picture, float32 [1, 3, height, width].

        Args:
            image: As `load_image` returns it; any other mode is converted to RGB.
        """
        return self.levels.planes([self.fit(image)])

    def fit(self, image: Image.Image) -> Image.Image:
        """The picture in RGB, padded, resized and cropped; its levels are still those of 8 bits.

        Args:
            image: As `load_image` returns it; any other mode is converted to RGB.
        """
        picture = self.to_rgb(image)
        geometry = self.geometry(*picture.size)
        if geometry.padded != geometry.picture:
            square = Image.new("RGB", geometry.padded, self.background)
            square.paste(picture, geometry.pad_offset)
            picture = square
        picture = resize(picture, geometry.resized, self.resample)
        if geometry.output != geometry.resized:
            (left, top), (width, height) = geometry.crop_offset, geometry.output
            picture = picture.crop((left, top, left + width, top + height))
        return picture

    @cached_property
    def levels(self) -> LevelTable:
        """Rescaling and normalising."""
        return LevelTable(self.rescale_factor, self.mean, self.std)

    def to_rgb(self, image: Image.Image) -> Image.Image:
        if not self.convert_rgb:
            if image.mode != "RGB":
                raise ImageError(
                    "the picture has the wrong mode",
                    expected="RGB (the image processor has do_convert_rgb off)",
                    found=image.mode,
                    fix="open it with divprune.runtime.inputs.image_loading.load_image",
                )
            return image
        return on_white(image)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize_to is None:
            return width, height
        if isinstance(self.resize_to, tuple):
            return self.resize_to[1], self.resize_to[0]
        long_edge = int(self.resize_to * max(width, height) / min(width, height))
        return (self.resize_to, long_edge) if width <= height else (long_edge, self.resize_to)

    def _fixed_size(self) -> tuple[int, int] | None:
        if self.crop_size is not None:
            return self.crop_size
        if isinstance(self.resize_to, int):
            return None if self.background is None else (self.resize_to, self.resize_to)
        return self.resize_to


def _processor_type(config: Mapping[str, Any]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = str(name).replace("FeatureExtractor", "ImageProcessor")
    kind = kind.removesuffix("Fast").removesuffix("Pil")
    if kind not in _DEFAULTS:
        raise UnsupportedError(
            f"image processor {name} is not supported"
            if name
            else "the config does not name its image processor",
            expected=f"image_processor_type {', '.join(_DEFAULTS)}",
            found=name or f"the keys {', '.join(map(str, config)) or '(none)'}",
            fix="copy preprocessor_config.json of the original model into the checkpoint",
        )
    return kind


def _refuse_unsupported(kind: str, options: Mapping[str, Any]) -> None:
    if kind == "CLIPImageProcessor" and options.get("use_square_size"):
        raise _bad_option("use_square_size", "absent or false", options["use_square_size"])
    pads_behind = kind != "LlavaImageProcessor" and _flag(options, "do_pad")
    if pads_behind and options.get("pad_size") is not None:
        raise _bad_option("pad_size", f"absent with {kind}", options["pad_size"])


def _resize_target(options: Mapping[str, Any]) -> tuple[int, int] | int:
    size = options["size"]
    if isinstance(size, int) and not _flag(options, "default_to_square"):
        size = {"shortest_edge": size}
    if isinstance(size, Mapping) and _set_keys(size) == {"shortest_edge"}:
        return _positive("size", size["shortest_edge"])
    return _height_width("size", size, "an integer, {shortest_edge} or {height, width}")


def _crop_size(options: Mapping[str, Any]) -> tuple[int, int]:
    return _height_width("crop_size", options["crop_size"], "an integer or {height, width}")


def _height_width(name: str, size: object, expected: str) -> tuple[int, int]:
    if isinstance(size, int):
        return _positive(name, size), _positive(name, size)
    if isinstance(size, Mapping) and _set_keys(size) == {"height", "width"}:
        return _positive(name, size["height"]), _positive(name, size["width"])
    if isinstance(size, Sequence) and not isinstance(size, str) and len(size) == 2:
        return _positive(name, size[0]), _positive(name, size[1])
    raise _bad_option(name, expected, size)


def _set_keys(size: Mapping[str, Any]) -> set[str]:
    return {key for key, value in size.items() if value is not None}


def _positive(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _bad_option(name, "positive integers", value)
    return value


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options[name]
    if value is not None and not isinstance(value, bool):
        raise _bad_option(name, "true or false", value)
    return value is True


def _number(options: Mapping[str, Any], name: str) -> float:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise _bad_option(name, "a number", value)
    return float(value)


def _channels(options: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """One number a channel; a single number counts for all three."""
    value = options[name]
    values = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if len(values) != 3:
        raise _bad_option(name, "3 numbers", value)
    red, green, blue = (_number({name: each}, name) for each in values)
    return red, green, blue


def _std(options: Mapping[str, Any]) -> tuple[float, float, float]:
    std = _channels(options, "image_std")
    if 0.0 in std:
        raise _bad_option("image_std", "numbers other than 0", std)
    return std


def _background(options: Mapping[str, Any]) -> tuple[int, int, int]:
    if not options["image_mean"]:
        return 0, 0, 0
    means = _channels(options, "image_mean")
    if not all(0 <= mean <= 1 for mean in means):
        raise _bad_option("image_mean", "0 to 1 where pictures are padded in its colour", means)
    red, green, blue = (int(mean * 255) for mean in means)
    return red, green, blue


def _resample(options: Mapping[str, Any]) -> int:
    value = options["resample"]
    known = {int(filter_) for filter_ in Image.Resampling}
    if isinstance(value, bool) or not isinstance(value, int) or value not in known:
        raise _bad_option("resample", f"one of Pillow's filters {sorted(known)}", value)
    return value


def _check_pixels(step: tuple[int, int], picture: tuple[int, int]) -> None:
    if step[0] * step[1] > MAX_PIXELS:
        raise ImageError(
            "the picture is too large or too elongated to be prepared",
            expected=f"at most {MAX_PIXELS} pixels when padded and resized",
            found=f"{step[0]} x {step[1]} pixels from a picture of {picture[0]} x {picture[1]}",
            fix="crop or scale the picture first",
        )


def _bad_option(name: str, expected: object, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"image processor option {name} has a value that is not supported",
        expected=expected,
        found=found,
    )
