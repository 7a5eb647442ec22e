"""SmolVLM2, SmolVLM and Idefics3: rows and columns of crops with text between, the whole last.

A picture is first enlarged or reduced until its longer edge has the processor's length, then cut.
Videos have one crop a frame, with the frame's time before it. Tokens follow one another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.runtime.directory.manifest_records import DimRange, TowerInfo
from divprune.runtime.errors import CheckpointError, ImageError, UnsupportedError
from divprune.runtime.families._model_config import (
    TEXT_DEFAULTS,
    read_count,
    read_packed,
    read_text,
    with_defaults,
)
from divprune.runtime.families._positions import text_positions
from divprune.runtime.families._smolvlm_video import VideoSampling, need_fps, video_text
from divprune.runtime.families._tiles import (
    check_processor,
    cut,
    frame_map,
    image_options,
    level_table,
    require,
    resample_filter,
    tile_map,
    video_options,
)
from divprune.runtime.families.dimensions import ModelDimensions
from divprune.runtime.families.protocol import MediaKind, Prepared, VideoFrames
from divprune.runtime.inputs.levels import LevelTable
from divprune.runtime.inputs.resizing import resize
from divprune.runtime.inputs.transparency import on_white

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["FAMILY", "SmolVLM", "fit_longest_edge", "fit_multiples"]

_PROCESSORS = ("SmolVLMImageProcessor", "Idefics3ImageProcessor")
_VIDEO = "<video>"
_AROUND, _GLOBAL = "<fake_token_around_image>", "<global-img>"
_LARGEST_EDGE = 4096
_TYPICAL = (640, 480)
_TYPICAL_CROPS = 13  # 4 x 3 crops of such a picture, and the whole of it
_CROPS = 4**2 + 1  # where preprocessor_config.json is not at hand
_TOWER: Mapping[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
_TOWER_DEFAULTS = {"smolvlm_vision": _TOWER, "idefics3_vision": _TOWER}


@dataclass(frozen=True)
class SmolVLM:
    """SmolVLM as one checkpoint has it.

    Attributes:
        placeholders: For pictures, and for videos where the model takes them.
        crop_size: Edge of a crop in pixels.
        crop_side: Tokens along an edge of a crop.
        longest_edge: What the longer edge of a picture is resized to first.
        splits: Whether pictures are cut at all.
        max_crops: Most crops of a picture, or frames, that the vision graph takes.
        resample: Pillow's number of the filter.
        levels: Rescaling and normalising of pictures.
        preprocessor: The checkpoint's file, for what it says about videos.
    """

    name: ClassVar[str] = "smolvlm"
    request_sensitive: ClassVar[bool] = False
    default_frames: ClassVar[int] = 64

    placeholders: Mapping[MediaKind, str]
    crop_size: int
    crop_side: int
    longest_edge: int
    splits: bool
    max_crops: int
    resample: int
    levels: LevelTable
    preprocessor: Mapping[str, Any]

    @classmethod
    def from_facts(
        cls,
        facts: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        max_image_tokens: int | None,
    ) -> SmolVLM:
        """Read what the export wrote; see ``protocol.Family``."""
        options = image_options(preprocessor)
        check_processor(options, _PROCESSORS)
        crop_size, crop_side = int(facts["crop_size"]), int(facts["crop_side"])
        _check_crop(options, crop_size)
        longest_edge = _edge(options, "size")
        splits = require(options, "do_image_splitting") is True
        along = math.ceil(longest_edge / crop_size) if splits else 1
        crops = along**2 + 1 if along > 1 else 1
        if max_image_tokens is not None:
            crops = max_image_tokens // crop_side**2
        if crops < 1:
            raise UnsupportedError(
                f"{max_image_tokens} tokens are too few for a picture of this model",
                expected=f"at least {crop_side**2}",
                found=max_image_tokens,
                fix=f"--max-image-tokens {crop_side**2}",
            )
        placeholders: dict[MediaKind, str] = {"image": facts["image_token"]}
        if (template := facts["video_template"]) is not None:
            if not isinstance(template, str):
                raise TypeError(f"video_template is no text: {template}")
            placeholders["video"] = _VIDEO
        return cls(
            placeholders=MappingProxyType(placeholders),
            crop_size=crop_size,
            crop_side=crop_side,
            longest_edge=longest_edge,
            splits=splits,
            max_crops=crops,
            resample=resample_filter(options),
            levels=level_table(options),
            preprocessor=preprocessor,
        )

    @classmethod
    def read_dimensions(cls, name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """The shape of a model and N of its largest picture; see ``protocol.Family``."""
        text = with_defaults(content, "text_config", TEXT_DEFAULTS, "llama")
        kind = f"{cls.name}_vision"
        vision = with_defaults(content, "vision_config", _TOWER_DEFAULTS, kind)
        side = read_count(vision, "image_size") // read_count(vision, "patch_size")
        factor = content.get("scale_factor", 2)
        tower = TowerInfo(
            hidden_size=read_count(vision, "hidden_size"),
            intermediate_size=read_count(vision, "intermediate_size"),
            num_layers=read_count(vision, "num_hidden_layers"),
            num_heads=read_count(vision, "num_attention_heads"),
            num_positions=side**2,
            patch_size=vision["patch_size"],
            num_channels=read_count(vision, "num_channels"),
            feature_size=vision["hidden_size"] * factor**2,
        )
        each = (side // factor) ** 2
        return ModelDimensions(
            name,
            tower,
            read_text(text),
            _CROPS * each,
            read_packed(content),
            typical_image_tokens=_TYPICAL_CROPS * each,
            crops=_CROPS,
            typical_crops=_TYPICAL_CROPS,
        )

    @property
    def crop_tokens(self) -> int:
        """Tokens of a crop or frame."""
        return self.crop_side**2

    def dims(self) -> Mapping[str, DimRange]:
        """Crops and tokens; see ``protocol.Family``."""
        crops = (1, self.count_tokens(*_TYPICAL) // self.crop_tokens, self.max_crops)
        return {
            "crops": DimRange(*crops),
            "tokens": DimRange(*(self.crop_tokens * count for count in crops)),
        }

    def count_tokens(self, width: int, height: int) -> int:
        """N of a picture of that size."""
        columns, rows = self._fit(width, height)[2]
        return self.crop_tokens * (columns * rows + 1)

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """One picture; see ``protocol.Family``."""
        picture = on_white(picture)
        width, height = picture.size
        resized, canvas, (columns, rows) = self._fit(width, height)
        picture = resize(picture, resized, self.resample)
        if self.splits:
            picture = resize(picture, canvas, self.resample)
        crops = cut(picture, columns, rows, self.crop_size)
        crops.append(resize(picture, (self.crop_size, self.crop_size), self.resample))
        scaled = max(resized) < self.longest_edge
        return Prepared(
            kind="image",
            inputs={"pixel_values": self.levels.planes(crops)},
            num_tokens=len(crops) * self.crop_tokens,
            text=self._image_text(columns, rows),
            runs=(self.crop_tokens,) * len(crops),
            token_map=lambda: tile_map(width, height, columns, rows, self.crop_side),
            note=f"longer edge of {max(resized)} instead of {self.longest_edge} pixels "
            "(--max-image-tokens)"
            if scaled
            else None,
        )

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """One video, a crop a frame; see ``protocol.Family``."""
        if "video" not in self.placeholders:
            raise UnsupportedError("this model takes no videos", expected="pictures", found="video")
        fps = need_fps(video)
        sampling = VideoSampling.from_config(self.preprocessor, asked=num_frames is not None)
        wanted = sampling.choose(len(video.frames), fps, num_frames)
        if len(wanted) > self.max_crops and num_frames is not None:
            raise self._too_many_frames(len(wanted))
        indices = wanted
        if len(wanted) > self.max_crops:
            indices = sampling.choose(len(video.frames), fps, self.max_crops)
        options = video_options(self.preprocessor)
        width, height = video.frames[indices[0]].size
        crops = [self._frame(video.frames[index], sampling, options) for index in indices]
        return Prepared(
            kind="video",
            inputs={"pixel_values": level_table(options).planes(crops)},
            num_tokens=len(crops) * self.crop_tokens,
            text=video_text(indices, fps, len(video.frames), self._image_text(0, 0)),
            runs=(self.crop_tokens,) * len(crops),
            token_map=lambda: frame_map(width, height, len(crops), self.crop_side),
            note=f"{len(indices)} frames instead of {len(wanted)}, more than the vision graph takes"
            if len(indices) < len(wanted)
            else None,
            frames=tuple(indices),
        )

    def positions(
        self, is_visual: NDArray[np.bool_], media: Sequence[Prepared]
    ) -> tuple[NDArray[np.int64], int]:
        """One after another; see ``protocol.Family``."""
        return text_positions(len(is_visual))

    def _fit(
        self, width: int, height: int
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Size after the first resizing, after the second, and columns and rows of crops.

        0 x 0 crops where the whole picture is all there is. The longer edge shrinks by whole
        crops until the picture has no more than ``max_crops``.
        """
        if width < 1 or height < 1:
            raise ImageError("the picture has no pixels", found=f"{width} x {height}")
        shorter = range(
            self.crop_size * ((self.longest_edge - 1) // self.crop_size), 0, -self.crop_size
        )
        for edge in (self.longest_edge, *shorter):
            resized = fit_longest_edge(width, height, edge)
            canvas = fit_multiples(*resized, self.crop_size)
            columns, rows = canvas[0] // self.crop_size, canvas[1] // self.crop_size
            if not self.splits or columns * rows == 1:
                return resized, canvas, (0, 0)
            if columns * rows + 1 <= self.max_crops:
                return resized, canvas, (columns, rows)
        edge = min(self.longest_edge, self.crop_size)
        return fit_longest_edge(width, height, edge), (self.crop_size, self.crop_size), (0, 0)

    def _image_text(self, columns: int, rows: int) -> str:
        """The crops with their places, a line a row, and the whole picture."""
        image = self.placeholders["image"]
        whole = f"{_AROUND}{_GLOBAL}{image}{_AROUND}"
        if not rows:
            return whole
        lines = (
            "".join(f"{_AROUND}<row_{row}_col_{column + 1}>{image}" for column in range(columns))
            for row in range(1, rows + 1)
        )
        return "\n".join(lines) + f"\n\n{whole}"

    def _frame(
        self, frame: Image.Image, sampling: VideoSampling, options: Mapping[str, Any]
    ) -> Image.Image:
        edge = sampling.longest_edge or self.longest_edge
        resample = resample_filter(options)
        frame = on_white(frame).resize(fit_longest_edge(*frame.size, edge), resample)
        return frame.resize((self.crop_size, self.crop_size), resample)

    def _too_many_frames(self, frames: int) -> UnsupportedError:
        return UnsupportedError(
            "the vision graph does not take that many frames",
            expected=f"at most {self.max_crops} frames",
            found=frames,
            fix=f"--num-frames {self.max_crops}, or export with "
            f"--max-image-tokens {frames * self.crop_tokens}",
        )


FAMILY = SmolVLM


def fit_longest_edge(width: int, height: int, edge: int) -> tuple[int, int]:
    """Width and height with the longer of them ``edge``, the other one even.

    Rounded as transformers does: down, then up by one where that is odd.
    """
    aspect = width / height
    if width >= height:
        shorter = int(edge / aspect)
        return edge, max(shorter + shorter % 2, 1)
    shorter = int(edge * aspect)
    return max(shorter + shorter % 2, 1), edge


def fit_multiples(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height as multiples of ``side``, the longer one first rounded up."""
    aspect = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return width, math.ceil(int(width / aspect) / side) * side
    height = math.ceil(height / side) * side
    return math.ceil(int(height * aspect) / side) * side, height


def _edge(options: Mapping[str, Any], key: str) -> int:
    value = require(options, key)
    edge = value.get("longest_edge") if isinstance(value, Mapping) else None
    if type(edge) is not int or not 1 <= edge <= _LARGEST_EDGE:
        raise UnsupportedError(
            f"image processor option {key} has a value that is not supported",
            expected=f"{{longest_edge: 1 to {_LARGEST_EDGE} pixels}}",
            found=value,
        )
    return edge


def _check_crop(options: Mapping[str, Any], crop_size: int) -> None:
    found = _edge(options, "max_image_size")
    if found != crop_size:
        raise CheckpointError(
            "the image processor does not fit the vision tower",
            expected=f"max_image_size {{longest_edge: {crop_size}}}, which the tower takes",
            found=f"max_image_size {{longest_edge: {found}}}",
            fix="copy preprocessor_config.json of the original model into the checkpoint",
        )
