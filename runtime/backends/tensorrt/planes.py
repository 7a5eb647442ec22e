"""Rows on the device that decoder layers add behind themselves (DeepStack)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends.cuda.buffers import DeviceBuffer
from divprune.runtime.backends.tensorrt.rows import DevicePrompt, DeviceRows, stretches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends.cuda.cuda import Cuda

__all__ = ["PlaneWriter"]


class PlaneWriter:
    """Lays out the planes of a prompt: zero for text, the kept rows at the places of their tokens.

    Args:
        cuda: The GPU.
        stream: On which the copies run.
        count: Planes of the model; with none nothing is allocated.
        max_rows: Longest prompt.
        hidden_size: Numbers of a row.
        dtype: Of the numbers.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Any,
        count: int,
        max_rows: int,
        hidden_size: int,
        dtype: np.dtype[Any],
    ) -> None:
        self._cuda, self._stream, self._dtype = cuda, stream, dtype
        self._hidden_size, self._row_bytes = hidden_size, hidden_size * dtype.itemsize
        self._buffers = [DeviceBuffer(cuda, max_rows * self._row_bytes) for _ in range(count)]

    def write(
        self, is_visual: NDArray[np.bool_], planes: Sequence[Sequence[Any]], number: int
    ) -> tuple[DevicePrompt, ...]:
        """Lay out the planes of the prompt ``number``; those of the one before are gone.

        Args:
            is_visual: bool [S].
            planes: For each picture its kept rows [K, hidden] of every plane, on the device.
            number: Of the prompt.
        """
        written, places = self.clear(len(is_visual), number), np.flatnonzero(is_visual)
        for plane, pictures in zip(written, zip(*planes, strict=True), strict=True):
            for rows, first in stretches(pictures, places):
                self._copy(rows, plane.address + first * self._row_bytes)
        return written

    def upload(
        self, planes: Sequence[NDArray[np.floating]], number: int
    ) -> tuple[DevicePrompt, ...]:
        """Take planes [1, S, hidden] that were made on the host."""
        written = self.clear(planes[0].shape[1], number)
        for plane, given in zip(written, planes, strict=True):
            rows = np.ascontiguousarray(given[0], self._dtype)
            self._cuda.upload(plane.address, rows.ctypes.data, rows.nbytes, self._stream)
            self._cuda.synchronize(self._stream)  # the rows are gone after this
        return written

    def clear(self, rows: int, number: int) -> tuple[DevicePrompt, ...]:
        """Planes of zeros for a prompt of so many rows."""
        for buffer in self._buffers:
            self._cuda.zero(buffer.address, rows * self._row_bytes, self._stream)
        shape = (1, rows, self._hidden_size)
        return tuple(DevicePrompt(shape, buffer.address, number) for buffer in self._buffers)

    def _copy(self, rows: DeviceRows, target: int) -> None:
        if rows.dtype != self._dtype:
            raise ValueError(f"planes are {rows.dtype}, embeddings {self._dtype}")
        for offset, size in rows.pieces():
            self._cuda.copy(target, rows.address + offset, size, self._stream)
            target += size
