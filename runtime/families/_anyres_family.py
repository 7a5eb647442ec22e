"""What LLaVA-1.6, LLaVA-NeXT-Video and LLaVA-OneVision have in common at run time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from divprune.runtime.directory.manifest_records import DimRange
from divprune.runtime.errors import ImageError, OptionError
from divprune.runtime.families._anyres import (
    Size,
    Tiling,
    best_pinpoint,
    cut_crops,
    possible_grids,
)
from divprune.runtime.families._anyres_processor import Processors
from divprune.runtime.families._packing import Packing, pack_tiles
from divprune.runtime.families._positions import text_positions
from divprune.runtime.families.protocol import MediaKind, Prepared, TokenMap

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from divprune.runtime.inputs.image_processor import ImageProcessor

__all__ = ["AnyresFamily", "crop_map"]

log = logging.getLogger(__name__)

_TYPICAL = (480, 640)


@dataclass(frozen=True)
class AnyresFamily:
    """Pictures as a base view and tiles.

    Attributes:
        processors: Pixels of a crop, and of a frame.
        placeholders: The texts of the image token and, where there is one, the video token.
        side: Side of a crop in pixels.
        patch: Side of a patch in pixels.
        pinpoints: Grids (height, width) in pixels that the limit allows.
        all_pinpoints: Those of the checkpoint.
        max_tiles: Tiles' worth of patches above which a grid is shrunk; None for no such rule.
        limit: ``--max-image-tokens``, or None.
    """

    name: ClassVar[str]
    request_sensitive: ClassVar[bool] = False
    default_frames: ClassVar[int] = 8
    taps: ClassVar[int] = 1

    processors: Processors
    placeholders: Mapping[MediaKind, str]
    side: int
    patch: int
    pinpoints: tuple[Size, ...]
    all_pinpoints: tuple[Size, ...]
    max_tiles: int | None
    limit: int | None

    @classmethod
    def from_facts(
        cls,
        facts: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        max_image_tokens: int | None,
    ) -> AnyresFamily:
        """Read ``image_size``, ``patch_size``, ``pinpoints``, ``max_tiles`` and the tokens.

        Raises:
            UnsupportedError: if an option of the image processor cannot be carried out.
            CheckpointError: if the image processor does not fit the tower.
            OptionError: if no grid of tiles stays within ``max_image_tokens``.
        """
        pinpoints = tuple((int(height), int(width)) for height, width in facts["pinpoints"])
        processors = Processors.from_config(preprocessor, facts["image_size"], pinpoints)
        placeholders: dict[MediaKind, str] = {"image": facts["image_token"]}
        if "video_token" in facts:
            placeholders["video"] = facts["video_token"]
        unlimited = cls(
            processors,
            MappingProxyType(placeholders),
            facts["image_size"],
            facts["patch_size"],
            pinpoints,
            pinpoints,
            facts.get("max_tiles"),
            max_image_tokens,
        )
        return unlimited if max_image_tokens is None else unlimited._limited(max_image_tokens)

    @property
    def cells(self) -> int:
        """Patches along the side of a crop."""
        return self.side // self.patch

    def dims(self) -> Mapping[str, DimRange]:
        """Ranges of ``crops`` and ``tokens``."""
        counts = [count for pinpoint in self.pinpoints for count in self._counts(pinpoint)]
        crops = [self._num_crops(pinpoint) for pinpoint in self.pinpoints]
        height, width = _TYPICAL
        return {
            "crops": DimRange(
                min(crops), self._num_crops(best_pinpoint(_TYPICAL, self.pinpoints)), max(crops)
            ),
            "tokens": DimRange(min(counts), self.count_tokens(width, height), max(counts)),
        }

    def count_tokens(self, width: int, height: int) -> int:
        """N of a single picture of that size, in pixels."""
        return self._count(self._tiling((height, width)).grid)

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """Crops ``pixel_values`` float32 [crops, 3, side, side] and the index of the tokens."""
        del num_media
        tiling = self._tiling(picture.size[::-1])
        target = self._target(tiling.grid)
        packing = pack_tiles(tiling, target, self.taps)
        return self._prepared(
            "image",
            cut_crops(picture, tiling, self.processors.crop),
            packing,
            partial(self._tile_map, tiling, packing),
            self._note(tiling),
        )

    def positions(
        self, is_visual: NDArray[np.bool_], media: Sequence[Prepared]
    ) -> tuple[NDArray[np.int64], int]:
        """Rows are counted."""
        del media
        return text_positions(len(is_visual))

    def _prepared(
        self,
        kind: MediaKind,
        pixel_values: NDArray[np.float32],
        packing: Packing,
        token_map: Any,
        note: str | None = None,
    ) -> Prepared:
        return Prepared(
            kind=kind,
            inputs={"pixel_values": pixel_values, **self._index(packing)},
            num_tokens=len(packing),
            text=self.placeholders[kind],
            runs=(len(packing),),
            token_map=token_map,
            note=note,
        )

    def _index(self, packing: Packing) -> dict[str, NDArray[Any]]:
        """The index as the graph takes it: one row a token, or several with weights."""
        if self.taps == 1:
            return {"token_rows": packing.rows[:, 0]}
        return {"token_rows": packing.rows, "token_weights": packing.weights}

    def _target(self, grid: Size) -> Size:
        """What the tiles' patches are shrunk to."""
        return grid

    def _count(self, grid: Size) -> int:
        height, width = self._target(grid)
        return self.cells**2 + height * (width + 1)

    def _counts(self, pinpoint: Size) -> list[int]:
        """Every N of a pinpoint."""
        return [self._count(grid) for grid in possible_grids(pinpoint, self.side, self.cells)]

    def _num_crops(self, pinpoint: Size) -> int:
        return 1 + pinpoint[0] // self.side * (pinpoint[1] // self.side)

    def _tiling(self, picture: Size) -> Tiling:
        if min(picture) < 1:
            raise ImageError("the picture has no pixels", found=f"{picture[1]} x {picture[0]}")
        pinpoint = best_pinpoint(picture, self.pinpoints)
        return Tiling(picture, pinpoint, self.side, self.cells, self.patch)

    def _note(self, tiling: Tiling) -> str | None:
        """Say so where the limit has taken a grid away from this picture."""
        wanted = best_pinpoint(tiling.picture, self.all_pinpoints)
        if wanted == tiling.pinpoint:
            return None
        return (
            f"the picture was scaled to fit {tiling.pinpoint[1]} x {tiling.pinpoint[0]} pixels "
            f"instead of {wanted[1]} x {wanted[0]}, which may exceed --max-image-tokens "
            f"{self.limit}"
        )

    def _limited(self, limit: int) -> AnyresFamily:
        """The same with the pinpoints that cannot exceed the limit."""
        from dataclasses import replace

        largest = {pinpoint: max(self._counts(pinpoint)) for pinpoint in self.pinpoints}
        allowed = tuple(pinpoint for pinpoint in self.pinpoints if largest[pinpoint] <= limit)
        if not allowed:
            smallest = min(largest.values())
            raise OptionError(
                "--max-image-tokens is too small for this model",
                expected=f"at least {smallest}, for its smallest grid of tiles",
                found=limit,
                fix=f"--max-image-tokens {smallest}",
            )
        return replace(self, pinpoints=allowed)

    def _tile_map(self, tiling: Tiling, packing: Packing) -> TokenMap:
        height, width = tiling.picture
        whole = packing.boxes * (np.array([width, height, width, height]) * self.patch / self.side)
        on_tiles = (packing.views == 1)[:, None]
        boxes = np.where(on_tiles, tiling.to_picture(packing.boxes), whole)
        return TokenMap(_within(boxes, (height, width)), packing.views, ("whole", "tiles"))


def crop_map(
    processor: ImageProcessor, size: tuple[int, int], packing: Packing, patch: int
) -> NDArray[np.float32]:
    """Boxes in a picture (width, height) of tokens whose views are whole processed pictures."""
    geometry = processor.geometry(*size)
    edges: Any = packing.boxes * patch
    left, top = geometry.to_picture(edges[:, 0], edges[:, 1])
    right, bottom = geometry.to_picture(edges[:, 2], edges[:, 3])
    return _within(np.stack([left, top, right, bottom], axis=1), size[::-1])


def _within(boxes: NDArray[np.float64], picture: Size) -> NDArray[np.float32]:
    """Boxes cut at the edges of the picture; NaN for those outside."""
    height, width = picture
    cut: NDArray[np.float32] = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    cut[(cut[:, 0] >= cut[:, 2]) | (cut[:, 1] >= cut[:, 3])] = np.nan
    return cut
