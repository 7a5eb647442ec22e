"""Qwen2.5-VL: attention inside windows in most layers, seconds in the positions of a video.

Beside what ``_qwen_vision`` lists the vision graph takes

| name | dtype, shape | meaning |
|---|---|---|
| window_rows | int64 [windows, window] | patches of each window; 0 where it is not full |
| window_mask | float32 [windows, window] | 0 for a patch, a large negative number elsewhere |
| window_slots | int64 [cells, merge * merge] | where in all windows each patch lies |

A window holds the patches of 4 x 4 cells. At the right and lower edge it may hold fewer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from divprune.runtime.directory.manifest_records import DimRange
from divprune.runtime.families._multimodal_positions import Span
from divprune.runtime.families.protocol import Prepared
from divprune.runtime.families.qwen2_vl import Qwen2VL

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FAMILY", "Qwen25VL"]

_MAX_WINDOW_SIDE = 256  # cells along the side of a window

# Finite in float16 too, and far below any product of a query and a key.
_NO_PATCH = -30000.0


@dataclass(frozen=True)
class _Timed(Prepared):
    """A video that knows how many positions lie between two of its steps."""

    interval: float = 1.0


class Qwen25VL(Qwen2VL):
    """A video is one span whose time positions are seconds times ``tokens_per_second``."""

    name: ClassVar[str] = "qwen2_5_vl"

    def dims(self) -> Mapping[str, DimRange]:
        """With the number of ``windows`` of a frame."""
        side, cells = int(self.facts["window_side"]), self.max_tokens
        if not 1 <= side <= _MAX_WINDOW_SIDE:
            raise ValueError(f"window_side {side} is not from 1 to {_MAX_WINDOW_SIDE}")
        most = max(-(-rows // side) * -(-(cells // rows) // side) for rows in range(1, cells + 1))
        typical = self._windows(*self._picture_cells(640, 480))
        return {**super().dims(), "windows": DimRange(1, min(typical, most), most)}

    def grid_inputs(self, rows: int, columns: int) -> dict[str, NDArray[Any]]:
        """With the windows of a frame of ``rows`` x ``columns`` cells."""
        side, patches = int(self.facts["window_side"]), self.images.merge**2
        down, across = -(-rows // side), -(-columns // side)
        cells = np.full((down * side, across * side), -1)
        cells[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
        cells = cells.reshape(down, side, across, side).swapaxes(1, 2).reshape(-1, side**2)
        rows_of = np.where(
            cells[..., None] < 0, -1, cells[..., None] * patches + np.arange(patches)
        )
        rows_of = rows_of.reshape(len(cells), -1)
        slots = np.empty(rows * columns * patches, np.int64)
        flat = rows_of.reshape(-1)
        slots[flat[flat >= 0]] = np.flatnonzero(flat >= 0)
        return super().grid_inputs(rows, columns) | {
            "window_rows": np.maximum(rows_of, 0).astype(np.int64),
            "window_mask": np.where(rows_of < 0, _NO_PATCH, 0).astype(np.float32),
            "window_slots": slots.reshape(-1, patches),
        }

    def timed(self, prepared: Prepared, sampled_fps: float) -> Prepared:
        """With the positions between two steps, in float32 as transformers has them."""
        assert self.videos is not None
        seconds = np.float32(self.videos.moments / sampled_fps)
        interval = float(np.float32(self.facts["tokens_per_second"]) * seconds)
        return _Timed(**vars(prepared), interval=interval)

    def spans(self, prepared: Prepared) -> list[Span]:
        """One; a picture has no time to space out."""
        assert prepared.grid is not None
        interval = prepared.interval if isinstance(prepared, _Timed) else 1.0
        return [Span(prepared.grid, interval)]

    def _picture_cells(self, width: int, height: int) -> tuple[int, int]:
        columns, rows = (side // self.images.factor for side in self._picture_size(width, height))
        return rows, columns

    def _windows(self, rows: int, columns: int) -> int:
        side = int(self.facts["window_side"])
        return -(-rows // side) * -(-columns // side)


FAMILY = Qwen25VL
