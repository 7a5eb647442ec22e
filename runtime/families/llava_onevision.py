"""LLaVA-OneVision: one picture as tiles, several as one crop each, videos as pooled frames.

A grid of tiles of more than ``max_tiles`` tiles' patches is shrunk by bilinear interpolation of
the projected features, and so is every frame of a video, to half its side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from divprune.runtime.families._anyres_config import read_anyres_model
from divprune.runtime.families._anyres_family import crop_map
from divprune.runtime.families._frames import FramesFamily
from divprune.runtime.families._packing import Packing, bilinear, concatenate, newline, same
from divprune.runtime.families.protocol import Prepared, TokenMap

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["FAMILY", "LlavaOnevision"]


_DEFAULTS: Mapping[str, Any] = {
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
    "vision_aspect_ratio": "anyres_max_9",
}


class LlavaOnevision(FramesFamily):
    """Tiles for a single picture, a newline behind whatever comes."""

    name: ClassVar[str] = "llava_onevision"
    request_sensitive: ClassVar[bool] = True
    has_end: ClassVar[bool] = True

    @staticmethod
    def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """The shape of the model that a ``config.json`` describes, with its largest picture."""
        return read_anyres_model(
            name, content, text="qwen2", tower="siglip_vision_model", defaults=_DEFAULTS
        )

    def frame_packing(self) -> Packing:
        """Patches interpolated to half as many a side, rounded up."""
        half = -(-self.grids.cells // 2)
        return bilinear((self.grids.cells, self.grids.cells), (half, half))

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """Tiles for a single picture; of several, one crop padded to a square for each."""
        if num_media == 1:
            return super().prepare_image(picture)
        patches = same((self.grids.cells, self.grids.cells), self.taps)
        packing = concatenate([patches, newline(len(patches), self.taps)])
        return self._prepared(
            "image",
            self.processors.square(picture),
            packing,
            partial(self._square_map, picture.size, packing),
        )

    def _square_map(self, size: tuple[int, int], packing: Packing) -> TokenMap:
        boxes = crop_map(self.processors.square, size, packing, self.grids.patch)
        return TokenMap(boxes, packing.views, ("whole",))


FAMILY = LlavaOnevision
