"""What LLaVA-1.6, LLaVA-NeXT-Video and LLaVA-OneVision have in common at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from divprune.runtime.directory.manifest_records import DimRange
from divprune.runtime.errors import ImageError
from divprune.runtime.families._anyres import Grids, Size, Tiling, best_pinpoint, cut_crops
from divprune.runtime.families._anyres_config import TYPICAL, read_anyres_model
from divprune.runtime.families._anyres_processor import Processors
from divprune.runtime.families._packing import Packing, pack_tiles
from divprune.runtime.families._positions import text_positions
from divprune.runtime.families.protocol import MediaKind, Prepared, TokenMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from divprune.runtime.families.dimensions import ModelDimensions
    from divprune.runtime.inputs.image_processor import ImageProcessor

__all__ = ["AnyresFamily", "crop_map"]


@dataclass(frozen=True)
class AnyresFamily:
    """Pictures as a base view and tiles.

    Attributes:
        processors: Pixels of a crop, and of a frame.
        placeholders: The texts of the image token and, where there is one, the video token.
        grids: Grids of tiles that the limit allows.
        pinpoints: Those of the checkpoint.
        limit: ``--max-image-tokens``, or None.
    """

    name: ClassVar[str]
    request_sensitive: ClassVar[bool] = False
    default_frames: ClassVar[int] = 8
    taps: ClassVar[int] = 1

    processors: Processors
    placeholders: Mapping[MediaKind, str]
    grids: Grids
    pinpoints: tuple[Size, ...]
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
        side = facts["image_size"]
        pinpoints = tuple((int(height), int(width)) for height, width in facts["pinpoints"])
        grids = Grids(side, facts["patch_size"], pinpoints, facts.get("max_tiles"))
        texts: dict[MediaKind, str] = {"image": facts["image_token"]}
        if facts.get("video_token") is not None:
            texts["video"] = facts["video_token"]
        return cls(
            Processors.from_config(preprocessor, side, pinpoints),
            MappingProxyType(texts),
            grids if max_image_tokens is None else grids.within(max_image_tokens),
            pinpoints,
            max_image_tokens,
        )

    @staticmethod
    def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """The shape of the model that a ``config.json`` describes, with its largest picture."""
        return read_anyres_model(name, content)

    def dims(self) -> Mapping[str, DimRange]:
        """Ranges of ``crops`` and ``tokens``."""
        grids, (height, width) = self.grids, TYPICAL
        counts = [count for pinpoint in grids.pinpoints for count in grids.counts(pinpoint)]
        crops = [grids.num_crops(pinpoint) for pinpoint in grids.pinpoints]
        typical = grids.num_crops(grids.tiling(TYPICAL).pinpoint)
        return {
            "crops": DimRange(min(crops), typical, max(crops)),
            "tokens": DimRange(min(counts), self.count_tokens(width, height), max(counts)),
        }

    def count_tokens(self, width: int, height: int) -> int:
        """N of a single picture of that size, in pixels."""
        return self.grids.count(self._tiling((height, width)).grid)

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """Crops ``pixel_values`` float32 [crops, 3, side, side] and the index of the tokens."""
        del num_media
        tiling = self._tiling((picture.height, picture.width))
        packing = pack_tiles(tiling, self.grids.target(tiling.grid), self.taps)
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

    def _tiling(self, picture: Size) -> Tiling:
        if min(picture) < 1:
            raise ImageError("the picture has no pixels", found=f"{picture[1]} x {picture[0]}")
        return self.grids.tiling(picture)

    def _note(self, tiling: Tiling) -> str | None:
        """Say so where the limit has taken a grid away from this picture."""
        wanted = best_pinpoint(tiling.picture, self.pinpoints)
        if wanted == tiling.pinpoint:
            return None
        return (
            f"the picture was scaled to fit {tiling.pinpoint[1]} x {tiling.pinpoint[0]} pixels "
            f"instead of {wanted[1]} x {wanted[0]}, which may exceed --max-image-tokens "
            f"{self.limit}"
        )

    def _tile_map(self, tiling: Tiling, packing: Packing) -> TokenMap:
        height, width = tiling.picture
        whole = packing.boxes * (
            np.array([width, height, width, height]) * self.grids.patch / self.grids.side
        )
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
    return _within(np.stack([left, top, right, bottom], axis=1), (size[1], size[0]))


def _within(boxes: NDArray[np.float64], picture: Size) -> NDArray[np.float32]:
    """Boxes cut at the edges of the picture; NaN for those outside."""
    height, width = picture
    cut: NDArray[np.float32] = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    cut[(cut[:, 0] >= cut[:, 2]) | (cut[:, 1] >= cut[:, 3])] = np.nan
    return cut
