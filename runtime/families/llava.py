"""LLaVA-1.5, LLaVA-Interleave, BakLLaVA: one crop, and a fixed number of visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from divprune.runtime.directory.manifest_records import DimRange
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families._model_config import read_clip_model
from divprune.runtime.families._positions import text_positions
from divprune.runtime.families.dimensions import ModelDimensions
from divprune.runtime.families.protocol import MediaKind, Prepared, TokenMap, VideoFrames
from divprune.runtime.inputs.image_processor import Geometry, ImageProcessor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["FAMILY", "Llava"]


@dataclass(frozen=True)
class Llava:
    """One fixed crop a picture.

    Attributes:
        processor: Pixels of a picture.
        placeholders: The image token's text.
        num_tokens: N.
        patch_size: Side of a patch of the crop in pixels.
    """

    name: ClassVar[str] = "llava"
    request_sensitive: ClassVar[bool] = False
    default_frames: ClassVar[int] = 8

    processor: ImageProcessor
    placeholders: Mapping[MediaKind, str]
    num_tokens: int
    patch_size: int

    @classmethod
    def from_facts(
        cls,
        facts: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        max_image_tokens: int | None,
    ) -> Llava:
        """Read the facts ``image_token``, ``image_size``, ``num_tokens`` and ``patch_size``.

        Raises:
            CheckpointError: if image processor and tower take pictures of different sizes, or
                ``max_image_tokens`` is below the fixed number.
        """
        processor = ImageProcessor.from_config(preprocessor)
        if list(processor.size) != list(facts["image_size"]):
            raise CheckpointError(
                "image processor and vision tower do not fit each other",
                expected=f"pictures of {tuple(facts['image_size'])} (height, width), "
                "from config.json",
                found=f"{processor.size}, from preprocessor_config.json",
            )
        if max_image_tokens is not None and max_image_tokens < facts["num_tokens"]:
            raise CheckpointError(
                "the model's pictures always have the same number of visual tokens",
                expected=f"--max-image-tokens of at least {facts['num_tokens']}, or none",
                found=max_image_tokens,
                fix="leave --max-image-tokens out",
            )
        placeholders: dict[MediaKind, str] = {"image": facts["image_token"]}
        return cls(
            processor, MappingProxyType(placeholders), facts["num_tokens"], facts["patch_size"]
        )

    @staticmethod
    def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """The shape of the model that a ``config.json`` describes."""
        return read_clip_model(name, content)

    def dims(self) -> Mapping[str, DimRange]:
        """Nothing varies."""
        return {}

    def count_tokens(self, width: int, height: int) -> int:
        """The same for every picture."""
        del width, height
        return self.num_tokens

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """One crop; ``pixel_values`` float32 [1, 3, H, W]."""
        del num_media
        return Prepared(
            kind="image",
            inputs={"pixel_values": self.processor(picture)},
            num_tokens=self.num_tokens,
            text=self.placeholders["image"],
            runs=(self.num_tokens,),
            token_map=partial(self._token_map, picture.size),
        )

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """Refuse: the family was trained on pictures."""
        del video, num_frames, num_media
        raise UnsupportedError(
            "this model takes no videos",
            expected="pictures",
            found="a video",
            fix="give single frames as pictures, or export a model for videos such as "
            "llava-next-video-7b",
        )

    def positions(
        self, is_visual: NDArray[np.bool_], media: Sequence[Prepared]
    ) -> tuple[NDArray[np.int64], int]:
        """Rows are counted."""
        del media
        return text_positions(len(is_visual))

    def _token_map(self, size: tuple[int, int]) -> TokenMap:
        height, width = self.processor.size
        rows, columns = height // self.patch_size, width // self.patch_size
        leading = self.num_tokens - rows * columns
        if leading not in (0, 1):
            raise UnsupportedError(
                "the kept patches of this model cannot be drawn",
                expected=f"{rows} x {columns} visual tokens, a patch each",
                found=f"{self.num_tokens} visual tokens",
            )
        boxes = crop_boxes(self.processor.geometry(*size), (rows, columns), self.patch_size)
        # A class token that is kept as an image token is not a part of the picture.
        nowhere = np.full((leading, 4), np.nan, np.float32)
        boxes = np.concatenate([nowhere, boxes])
        return TokenMap(boxes, np.zeros(self.num_tokens, np.int64), ("whole",))


def crop_boxes(geometry: Geometry, grid: tuple[int, int], patch: int) -> NDArray[np.float32]:
    """Where the patches of a processed crop lie in the picture, float32 [rows * columns, 4].

    Patches of padding only are NaN; others are cut at the picture's edge.
    """
    corners = [
        (
            *geometry.to_picture(column * patch, row * patch),
            *geometry.to_picture((column + 1) * patch, (row + 1) * patch),
        )
        for row in range(grid[0])
        for column in range(grid[1])
    ]
    boxes = np.array(corners, np.float32)
    width, height = geometry.picture
    boxes = boxes.clip(0, np.array([width, height, width, height], np.float32))
    empty = (boxes[:, 0] >= boxes[:, 2]) | (boxes[:, 1] >= boxes[:, 3])
    boxes[empty] = np.nan
    return boxes


FAMILY = Llava
