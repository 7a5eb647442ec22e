"""InternVL3 and 3.5: tiles in the grid nearest to the picture's aspect, the whole picture last.

Videos have one tile a frame, each frame named in the prompt. Tokens follow one another; a token
is a square of ``shuffle`` x ``shuffle`` patches that the tower's pixel shuffle joins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

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
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["FAMILY", "InternVL", "choose_grid"]

_PROCESSORS = ("GotOcr2ImageProcessor",)
_VIDEO = "<video>"
_START, _END = "<img>", "</img>"
_TYPICAL = (640, 480)
_MAX_TILES = 1024
_TILES = 12  # where preprocessor_config.json is not at hand
_TOWER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "internvl_vision": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 448,
        "patch_size": 14,
    }
}


@dataclass(frozen=True)
class InternVL:
    """InternVL as one checkpoint has it.

    Attributes:
        placeholders: The image token, and what stands for a video.
        tile_size: Edge of a tile in pixels.
        tile_side: Tokens along an edge of a tile.
        min_tiles: Fewest tiles of a picture, the whole picture behind them not counted.
        max_tiles: Most of them.
        family_tiles: Most of them where ``--max-image-tokens`` sets no limit.
        max_crops: Most tiles or frames that the vision graph takes.
        resample: Pillow's number of the filter.
        levels: Rescaling and normalising of pictures.
        video: The options of the checkpoint's video processor.
    """

    name: ClassVar[str] = "internvl"
    request_sensitive: ClassVar[bool] = False
    default_frames: ClassVar[int] = 8

    placeholders: Mapping[MediaKind, str]
    tile_size: int
    tile_side: int
    min_tiles: int
    max_tiles: int
    family_tiles: int
    max_crops: int
    resample: int
    levels: LevelTable
    video: Mapping[str, Any]

    @classmethod
    def from_facts(
        cls,
        facts: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        max_image_tokens: int | None,
    ) -> InternVL:
        """Read what the export wrote; see ``protocol.Family``."""
        options = image_options(preprocessor)
        check_processor(options, _PROCESSORS)
        tile_size, tile_side = int(facts["tile_size"]), int(facts["tile_side"])
        _check_size(require(options, "size"), tile_size)
        fewest, most = _patches(options)
        tokens = tile_side**2
        crops = None if max_image_tokens is None else max_image_tokens // tokens
        allowed = most if crops is None else min(most, _tiles_within(crops))
        if allowed < fewest or crops == 0:
            raise UnsupportedError(
                f"{max_image_tokens} tokens are too few for a picture of this model",
                expected=f"at least {_crops(fewest) * tokens}",
                found=max_image_tokens,
                fix=f"--max-image-tokens {_crops(fewest) * tokens}",
            )
        placeholders: dict[MediaKind, str] = {"image": facts["image_token"], "video": _VIDEO}
        return cls(
            placeholders=MappingProxyType(placeholders),
            tile_size=tile_size,
            tile_side=tile_side,
            min_tiles=fewest,
            max_tiles=allowed,
            family_tiles=most,
            max_crops=max(_crops(most), cls.default_frames) if crops is None else crops,
            resample=resample_filter(options),
            levels=level_table(options),
            video=video_options(preprocessor),
        )

    @staticmethod
    def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """The shape of a model and N of its largest picture; see ``protocol.Family``."""
        text = with_defaults(content, "text_config", TEXT_DEFAULTS, "qwen2")
        vision = with_defaults(content, "vision_config", _TOWER_DEFAULTS, "internvl_vision")
        for field in ("image_size", "patch_size"):
            if isinstance(vision[field], list):
                vision[field] = vision[field][0]
        side = read_count(vision, "image_size") // read_count(vision, "patch_size")
        shuffle = round(1 / content.get("downsample_ratio", 0.5))
        tower = TowerInfo(
            hidden_size=read_count(vision, "hidden_size"),
            intermediate_size=read_count(vision, "intermediate_size"),
            num_layers=read_count(vision, "num_hidden_layers"),
            num_heads=read_count(vision, "num_attention_heads"),
            num_positions=side**2 + 1,
            patch_size=vision["patch_size"],
            num_channels=read_count(vision, "num_channels"),
            feature_size=vision["hidden_size"] * shuffle**2,
        )
        # Of the original code's config; transformers says it of the image processor alone.
        tiles = content.get("max_dynamic_patch", _TILES)
        typical = math.prod(choose_grid(*_TYPICAL, read_count(vision, "image_size"), 1, tiles))
        each, most = (side // shuffle) ** 2, _crops(tiles)
        return ModelDimensions(
            name,
            tower,
            read_text(text),
            most * each,
            read_packed(content),
            typical_image_tokens=_crops(typical) * each,
            crops=most,
            typical_crops=_crops(typical),
        )

    @property
    def tile_tokens(self) -> int:
        """Tokens of a tile or frame."""
        return self.tile_side**2

    def dims(self) -> Mapping[str, DimRange]:
        """Tiles and tokens; see ``protocol.Family``."""
        typical = self.count_tokens(*_TYPICAL) // self.tile_tokens
        crops = (1, typical, self.max_crops)
        return {
            "crops": DimRange(*crops),
            "tokens": DimRange(*(self.tile_tokens * count for count in crops)),
        }

    def count_tokens(self, width: int, height: int) -> int:
        """N of a picture of that size."""
        columns, rows = self._grid(width, height, self.max_tiles)
        return self.tile_tokens * _crops(columns * rows)

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """One picture; see ``protocol.Family``."""
        picture = on_white(picture)
        width, height = picture.size
        columns, rows = self._grid(width, height, self.max_tiles)
        canvas = resize(picture, (columns * self.tile_size, rows * self.tile_size), self.resample)
        crops = cut(canvas, columns, rows, self.tile_size)
        if len(crops) > 1:
            crops.append(resize(picture, (self.tile_size, self.tile_size), self.resample))
        tiles = (columns, rows) if len(crops) > 1 else (0, 0)
        num_tokens = len(crops) * self.tile_tokens
        return Prepared(
            kind="image",
            inputs={"pixel_values": self.levels.planes(crops)},
            num_tokens=num_tokens,
            text=self._span,
            runs=(num_tokens,),
            token_map=lambda: tile_map(width, height, *tiles, self.tile_side),
            note=self._note(width, height, columns * rows),
        )

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """One video, a tile a frame; see ``protocol.Family``."""
        wanted = num_frames or min(self.default_frames, self.max_crops)
        indices = sample_frames(len(video.frames), wanted)
        if len(indices) > self.max_crops:
            raise UnsupportedError(
                "the vision graph does not take that many frames",
                expected=f"at most {self.max_crops} frames",
                found=len(indices),
                fix=f"--num-frames {self.max_crops}, or export with "
                f"--max-image-tokens {len(indices) * self.tile_tokens}",
            )
        _check_size(self.video.get("size"), self.tile_size)
        width, height = video.frames[indices[0]].size
        tile, resample = (self.tile_size, self.tile_size), resample_filter(self.video)
        crops = [on_white(video.frames[index]).resize(tile, resample) for index in indices]
        lines = (f"Frame{number}: {self._span}" for number in range(1, len(crops) + 1))
        return Prepared(
            kind="video",
            inputs={"pixel_values": level_table(self.video).planes(crops)},
            num_tokens=len(crops) * self.tile_tokens,
            text="\n".join(lines),
            runs=(self.tile_tokens,) * len(crops),
            token_map=lambda: frame_map(width, height, len(crops), self.tile_side),
            frames=tuple(indices),
        )

    def positions(
        self, is_visual: NDArray[np.bool_], media: Sequence[Prepared]
    ) -> tuple[NDArray[np.int64], int]:
        """One after another; see ``protocol.Family``."""
        return text_positions(len(is_visual))

    @property
    def _span(self) -> str:
        return _START + self.placeholders["image"] + _END

    def _grid(self, width: int, height: int, max_tiles: int) -> tuple[int, int]:
        if width < 1 or height < 1:
            raise ImageError("the picture has no pixels", found=f"{width} x {height}")
        if max_tiles == 1:
            return 1, 1
        return choose_grid(width, height, self.tile_size, self.min_tiles, max_tiles)

    def _note(self, width: int, height: int, tiles: int) -> str | None:
        columns, rows = self._grid(width, height, self.family_tiles)
        if columns * rows == tiles:
            return None
        return f"cut into {tiles} tiles instead of {columns * rows} (--max-image-tokens)"


FAMILY = InternVL


def choose_grid(
    width: int, height: int, tile_size: int, min_tiles: int, max_tiles: int
) -> tuple[int, int]:
    """Columns and rows whose aspect is nearest to the picture's.

    Grids are tried by their number of tiles, then by columns. Of equally near ones a later one
    wins as long as the picture has more than half as many pixels as its tiles.
    """
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles // columns + 1)
        if columns * rows >= min_tiles
    ]
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=math.prod):
        distance = abs(width / height - columns / rows)
        fills = width * height > 0.5 * tile_size * tile_size * columns * rows
        if distance < nearest or (distance == nearest and fills):
            best, nearest = (columns, rows), distance
    return best


def sample_frames(total: int, count: int) -> list[int]:
    """``count`` of ``total`` frames, each from the middle of its share; all if there are fewer."""
    if count >= total:
        return list(range(total))
    step = total / count
    return [int(np.float32(step / 2 + step * index)) for index in range(count)]


def _crops(tiles: int) -> int:
    return 1 if tiles == 1 else tiles + 1


def _tiles_within(crops: int) -> int:
    """Most tiles of a picture that make at most so many crops with the whole behind them."""
    return max(1, crops - 1)


def _patches(options: Mapping[str, Any]) -> tuple[int, int]:
    fewest, most = require(options, "min_patches"), require(options, "max_patches")
    valid = all(type(value) is int for value in (fewest, most))
    if not valid or not 1 <= fewest <= most <= _MAX_TILES:
        raise UnsupportedError(
            "image processor options min_patches and max_patches do not fit together",
            expected=f"integers, 1 <= min_patches <= max_patches <= {_MAX_TILES}",
            found=f"min_patches {fewest}, max_patches {most}",
        )
    return fewest, most


def _check_size(size: object, tile_size: int) -> None:
    if size not in (tile_size, {"height": tile_size, "width": tile_size}):
        raise CheckpointError(
            "the image processor does not fit the vision tower",
            expected=f"size {tile_size} x {tile_size}, which the tower takes",
            found=f"size {size}",
            fix="copy preprocessor_config.json of the original model into the checkpoint",
        )
