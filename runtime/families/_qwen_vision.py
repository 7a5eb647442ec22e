"""What Qwen2-VL, Qwen2.5-VL and Qwen3-VL have in common at run time.

Inputs of the vision graph; a cell is a merged token, its merge * merge patches stand together:

| name | dtype, shape | meaning |
|---|---|---|
| pixel_values | float32 [frames, cells, merge * merge * row] | patch rows; a frame is a pair of a video's |
| rotary_angles | float32 [cells, merge * merge, head dim / 2] | height's angles, then width's |

``frames`` is 1 for a picture. Whatever follows from the grid alone is the same for every frame.
"""  # noqa: E501

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from divprune.runtime.directory.manifest_records import DimRange
from divprune.runtime.errors import ImageError, UnsupportedError
from divprune.runtime.families._multimodal_positions import Span, multimodal_positions
from divprune.runtime.families._qwen_dimensions import read_qwen_model
from divprune.runtime.families._qwen_pixels import (
    PatchProcessor,
    block_major,
    fit_size,
)
from divprune.runtime.families.protocol import MediaKind, Prepared, TokenMap, VideoFrames

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["DEFAULT_MAX_TOKENS", "QwenVision"]

DEFAULT_MAX_TOKENS = 1280
"""Visual tokens of a picture or video where the export was not told: a 1 000-pixel square. The
models' own bound is 16 384, for which TensorRT would hold several GB of scratch memory."""

_Q = TypeVar("_Q", bound="QwenVision")


@dataclass(frozen=True)
class QwenVision(ABC):
    """A tower over patches of any grid, bound to one engine directory.

    Attributes:
        images: How pictures are cut.
        videos: How frames are cut; None where the directory says nothing about videos.
        max_tokens: Largest N.
        facts: ``model.facts`` of the manifest.
        placeholders: ``<|image_pad|>`` and ``<|video_pad|>``.
    """

    name: ClassVar[str]
    request_sensitive: ClassVar[bool] = False
    default_frames: ClassVar[int] = 8

    images: PatchProcessor
    videos: PatchProcessor | None
    max_tokens: int
    facts: Mapping[str, Any]
    placeholders: Mapping[MediaKind, str]

    @classmethod
    def from_facts(
        cls: type[_Q],
        facts: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        max_image_tokens: int | None,
    ) -> _Q:
        """Read what ``facts`` of the export's family wrote, and the processors' configs.

        Raises:
            UnsupportedError: naming the option of a processor that cannot be carried out.
            CheckpointError: if a processor cuts other patches than the tower takes.
        """
        nested = preprocessor.get("image_processor")
        images = PatchProcessor.from_config(
            nested if isinstance(nested, Mapping) else preprocessor, facts
        )
        video = preprocessor.get("video_processor")
        videos = PatchProcessor.from_config(video, facts) if isinstance(video, Mapping) else None
        tokens = images.area.largest // images.factor**2
        placeholders: dict[MediaKind, str] = {"image": facts["image_token"]}
        if videos is not None:
            placeholders["video"] = facts["video_token"]
        return cls(
            images,
            videos,
            min(tokens, max_image_tokens or DEFAULT_MAX_TOKENS),
            facts,
            MappingProxyType(placeholders),
        )

    @classmethod
    def read_dimensions(cls, name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """Of a default export, whose largest picture has ``DEFAULT_MAX_TOKENS``."""
        return read_qwen_model(name, content, cls.name, DEFAULT_MAX_TOKENS)

    def dims(self) -> Mapping[str, DimRange]:
        """``frames``, ``cells`` of one of them, and ``tokens`` of all."""
        typical = min(self.count_tokens(640, 480), self.max_tokens)
        cells = DimRange(1, typical, self.max_tokens)
        frames = 1 if self.videos is None else int(self.facts["max_frame_steps"])
        return {"frames": DimRange(1, 1, frames), "cells": cells, "tokens": cells}

    def count_tokens(self, width: int, height: int) -> int:
        """N of a picture: the cells of the size that it is resized to."""
        columns, rows = (side // self.images.factor for side in self._picture_size(width, height))
        return columns * rows

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """Patches of the resized picture.

        Raises:
            ImageError: if it is too elongated.
        """
        del num_media
        size = self._picture_size(*picture.size)
        pixel_values = self.images.rows([picture], size)
        grid = self._grid(self.images, size, steps=1)
        return Prepared(
            kind="image",
            inputs={"pixel_values": pixel_values, **self.grid_inputs(grid[1], grid[2])},
            num_tokens=pixel_values.shape[1],
            text=self.placeholders["image"],
            runs=(pixel_values.shape[1],),
            token_map=partial(_token_map, picture.size, grid, ("whole",)),
            grid=grid,
            note=self._note(picture.size, size),
        )

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """Patches of sampled frames, a step of time for every two of them.

        Raises:
            UnsupportedError: if the directory has no video processor, or nothing says how many
                frames a second the video has.
        """
        del num_media
        if self.videos is None:
            raise UnsupportedError(
                "this engine directory takes no videos",
                expected="a checkpoint with video_preprocessor_config.json",
                found="a video",
                fix="export again from a checkpoint that has it",
            )
        fps = _frames_a_second(video)
        most = int(self.facts["max_frame_steps"]) * self.videos.moments
        indices = self.sample(len(video.frames), fps, num_frames, most)
        frames = [video.frames[index] for index in indices]
        steps = -(-len(frames) // self.videos.moments)
        size = self.video_size(*frames[0].size, len(frames))
        pixel_values = self.videos.rows(frames, size)
        grid = self._grid(self.videos, size, steps)
        panels = tuple(f"frame {1 + step * self.videos.moments}" for step in range(steps))
        text, runs = self.video_text(grid, [index / fps for index in indices])
        return self.timed(
            Prepared(
                kind="video",
                inputs={"pixel_values": pixel_values, **self.grid_inputs(grid[1], grid[2])},
                num_tokens=sum(runs),
                text=text,
                runs=runs,
                token_map=partial(_token_map, frames[0].size, grid, panels),
                grid=grid,
                frames=tuple(indices[:: self.videos.moments]),
            ),
            len(frames) / len(video.frames) * fps,
        )

    def positions(
        self, is_visual: NDArray[np.bool_], media: Sequence[Prepared]
    ) -> tuple[NDArray[np.int64], int]:
        """Time, height and width, int64 [3, L]."""
        spans = [span for prepared in media for span in self.spans(prepared)]
        return multimodal_positions(is_visual, spans)

    def spans(self, prepared: Prepared) -> list[Span]:
        """The runs of one picture or video."""
        assert prepared.grid is not None
        return [Span(prepared.grid)]

    def grid_inputs(self, rows: int, columns: int) -> dict[str, NDArray[Any]]:
        """Inputs of the vision graph that follow from the cells of a frame."""
        merge = self.images.merge
        patches = np.stack([*np.indices((rows * merge, columns * merge))], axis=-1)
        frequencies = np.array(self.facts["rotary_frequencies"], np.float32)
        angles = patches[..., None].astype(np.float32) * frequencies
        flat = angles.reshape(*angles.shape[:2], -1)  # height's, then width's
        return {"rotary_angles": np.ascontiguousarray(block_major(flat, merge))}

    @abstractmethod
    def sample(self, total: int, fps: float, asked: int | None, most: int) -> list[int]:
        """Indices of the frames that are taken, at most ``most``, in order of time."""

    @abstractmethod
    def video_size(self, width: int, height: int, num_frames: int) -> tuple[int, int]:
        """Width and height that the frames of a video are resized to."""

    def video_text(
        self, grid: tuple[int, int, int], seconds: Sequence[float]
    ) -> tuple[str, tuple[int, ...]]:
        """What stands for a video in the prompt, and its runs; ``seconds`` of every frame."""
        del seconds
        return self.placeholders["video"], (grid[0] * grid[1] * grid[2],)

    def timed(self, prepared: Prepared, sampled_fps: float) -> Prepared:
        """The same with what positions need to know of time."""
        del sampled_fps
        return prepared

    def _picture_size(self, width: int, height: int) -> tuple[int, int]:
        factor = self.images.factor
        area = self.images.area.at_most(self.max_tokens * factor**2)
        size = fit_size(width, height, factor, area)
        if size[0] * size[1] > self.max_tokens * factor**2:
            raise ImageError(
                "the picture is too elongated for this export",
                expected=f"at most {self.max_tokens} visual tokens",
                found=f"{size[0] * size[1] // factor**2} for {width} x {height} pixels",
                fix="crop the picture, or export with a larger --max-image-tokens",
            )
        return size

    def _note(self, picture: tuple[int, int], size: tuple[int, int]) -> str | None:
        if fit_size(*picture, self.images.factor, self.images.area) == size:
            return None
        return (
            f"scaled down from {picture[0]} x {picture[1]} to {size[0]} x {size[1]} pixels: this "
            f"export takes at most {self.max_tokens} visual tokens a picture"
        )

    @staticmethod
    def _grid(processor: PatchProcessor, size: tuple[int, int], steps: int) -> tuple[int, int, int]:
        return steps, size[1] // processor.factor, size[0] // processor.factor


def _frames_a_second(video: VideoFrames) -> float:
    if video.fps is None or video.fps <= 0:
        raise UnsupportedError(
            "nothing says how many frames a second this video has, and the model is told the time",
            expected="a video file, or --fps with a folder of frames or an animation",
            found=f"{len(video.frames)} frames without times",
            fix="--fps 1, if a second lies between two frames",
        )
    return video.fps


def _token_map(
    size: tuple[int, int], grid: tuple[int, int, int], panels: tuple[str, ...]
) -> TokenMap:
    steps, rows, columns = np.indices(grid).reshape(3, -1)
    across, down = size[0] / grid[2], size[1] / grid[1]
    boxes = [columns * across, rows * down, (columns + 1) * across, (rows + 1) * down]
    return TokenMap(np.stack(boxes, axis=1).astype(np.float32), steps.astype(np.int64), panels)
