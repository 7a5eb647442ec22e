"""Qwen3-VL: patches of 16 pixels, resampled learned positions, timestamps between frames.

Beside what ``_qwen_vision`` lists the vision graph takes

| name | dtype, shape | meaning |
|---|---|---|
| position_rows | int64 [cells, merge * merge, 4] | rows of the learned positions around a patch |
| position_weights | float32 [cells, merge * merge, 4] | what each of them counts |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from divprune.runtime.families._multimodal_positions import Span
from divprune.runtime.families._qwen_pixels import block_major, fit_size
from divprune.runtime.families._qwen_vision import QwenVision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.families.protocol import Prepared

__all__ = ["FAMILY", "Qwen3VL"]

_SAMPLED_FPS, _MIN_FRAMES = 2, 4


class Qwen3VL(QwenVision):
    """Every pair of frames is a span of its own with its time before it."""

    name: ClassVar[str] = "qwen3_vl"

    def grid_inputs(self, rows: int, columns: int) -> dict[str, NDArray[Any]]:
        """With the four taps of the bilinear resampling, corners aligned."""
        merge, side = self.images.merge, int(self.facts["position_side"])
        row_taps, row_weights = _taps(rows * merge, side)
        column_taps, column_weights = _taps(columns * merge, side)
        taps = row_taps[:, None, :, None] * side + column_taps[None, :, None, :]
        weights = row_weights[:, None, :, None] * column_weights[None, :, None, :]
        shape = (rows * merge, columns * merge, 4)
        return super().grid_inputs(rows, columns) | {
            "position_rows": block_major(taps.reshape(shape), merge),
            "position_weights": block_major(weights.reshape(shape), merge),
        }

    def sample(self, total: int, fps: float, asked: int | None, most: int) -> list[int]:
        """Evenly from the first to the last; 2 a second and at least 4 where none are asked for."""
        wanted = max(int(total / fps * _SAMPLED_FPS), _MIN_FRAMES) if asked is None else asked
        count = max(1, min(wanted, most, total))
        indices: list[int] = np.linspace(0, total - 1, count).round().astype(int).tolist()
        return indices

    def video_size(self, width: int, height: int, num_frames: int) -> tuple[int, int]:
        """The area of all frames together is bounded."""
        assert self.videos is not None
        factor, moments = self.videos.factor, self.videos.moments
        if min(width, height) < factor:
            scale = max(factor / width, factor / height)
            width, height = int(width * scale), int(height * scale)
        steps, rounded = -(-num_frames // moments), round(num_frames / moments) * moments
        rounded = max(rounded, moments)  # a single frame is shown twice
        bound = self.max_tokens * factor**2 * min(rounded, max(num_frames, moments)) // steps
        area = self.videos.area.at_most(bound)
        return fit_size(width, height, factor, area, (rounded, max(num_frames, moments)))

    def video_text(
        self, grid: tuple[int, int, int], seconds: Sequence[float]
    ) -> tuple[str, tuple[int, ...]]:
        """A time in words and a span for every pair of frames.

        As in transformers 5.23 all of it replaces ``<|video_pad|>`` alone: the markers that the
        chat template writes around a video stay.
        """
        assert self.videos is not None
        moments = self.videos.moments
        times = [*seconds, *[seconds[-1]] * (-len(seconds) % moments)]
        text = ""
        for start in range(0, len(times), moments):
            mean = (times[start] + times[start + moments - 1]) / 2
            span = f"<|vision_start|>{self.placeholders['video']}<|vision_end|>"
            text += f"<{mean:.1f} seconds>{span}"
        return text, (grid[1] * grid[2],) * grid[0]

    def spans(self, prepared: Prepared) -> list[Span]:
        """One a pair of frames: time is in the text."""
        assert prepared.grid is not None
        steps, rows, columns = prepared.grid
        return [Span((1, rows, columns))] * steps


def _taps(size: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Two rows of a table of ``side`` for each of ``size`` places, and their weights: [size, 2].

    In float32 and in this order of operations, as transformers does.
    """
    places = np.arange(size, dtype=np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    floor = np.floor(places)
    offsets = np.arange(2)
    taps = np.clip(floor.astype(np.int64)[:, None] + offsets, 0, side - 1)
    distance = np.abs(places[:, None] - floor[:, None] - offsets.astype(np.float32))
    return taps, np.clip(1 - distance, 0, None)


FAMILY = Qwen3VL
