"""Image features that stay on the device, and the prompt that they become a part of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends.cuda.buffers import BufferPool, DeviceBuffer, HostBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends.cuda.cuda import Cuda
    from divprune.runtime.backends.tensorrt.planes import PlaneWriter
    from divprune.runtime.generation.embeddings import EmbeddingTable

__all__ = ["DevicePrompt", "DeviceRows", "PromptWriter", "runs", "stretches"]


class DeviceRows:
    """Rows [count, width] on the device; behaves like an array where rows are chosen.

    Args:
        cuda: The GPU.
        stream: On which they are made.
        pool: Where their memory comes from and goes back to.
        shape: (count, width).
        dtype: Of the numbers.
        writer: Embeds the prompt that they become a part of.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Any,
        pool: BufferPool,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        writer: PromptWriter | None = None,
    ) -> None:
        self._cuda, self._stream, self._writer = cuda, stream, writer
        self.shape, self.dtype = shape, dtype
        self._owner: DeviceRows | None = None
        self._chosen: NDArray[np.int64] | None = None
        self.address = pool.take(self).address

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: NDArray[np.int64]) -> DeviceRows:
        """Some of the rows, in the order of ``indices``; nothing is copied."""
        if self._chosen is not None:
            indices = self._chosen[indices]
        rows = object.__new__(DeviceRows)
        rows.__dict__.update(self.__dict__)
        rows._owner = self  # which keeps the memory
        rows.shape, rows._chosen = (len(indices), self.shape[1]), indices
        return rows

    def __array__(
        self, dtype: np.dtype[Any] | None = None, *, copy: bool | None = None
    ) -> NDArray[Any]:
        """The numbers on the host."""
        del copy  # there is no other way
        out = np.empty(self.shape, self.dtype)
        row = 0
        for offset, size in self.pieces():
            target = out.ctypes.data + row
            self._cuda.download(target, self.address + offset, size, self._stream)
            row += size
        self._cuda.synchronize(self._stream)
        return out if dtype is None else out.astype(dtype)

    def splice(
        self,
        ids: NDArray[np.int64],
        is_visual: NDArray[np.bool_],
        features: Sequence[Any],
        table: EmbeddingTable,
    ) -> DevicePrompt:
        """Embed a prompt on the device; the arguments are those of ``merge.splice``."""
        if self._writer is None:
            raise ValueError("these rows are not for a prompt")
        return self._writer.write(ids, is_visual, features, table)

    def splice_planes(
        self, is_visual: NDArray[np.bool_], planes: Sequence[Sequence[Any]]
    ) -> tuple[DevicePrompt, ...]:
        """Lay out planes on the device; the arguments are those of ``merge.splice_planes``."""
        if self._writer is None or self._writer.planes is None:
            raise ValueError("these rows are not for a prompt with planes")
        return self._writer.planes.write(is_visual, planes, self._writer.number)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Offset and size in bytes of the contiguous pieces that the rows lie in."""
        row_bytes = self.shape[1] * self.dtype.itemsize
        if self._chosen is None:
            yield 0, self.shape[0] * row_bytes
            return
        for first, count in runs(self._chosen):
            yield first * row_bytes, count * row_bytes


def runs(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and length of each stretch of numbers that follow one another."""
    borders = np.flatnonzero(np.diff(numbers) != 1) + 1
    for stretch in np.split(numbers, borders):
        if len(stretch):
            yield int(stretch[0]), len(stretch)


def stretches(features: Sequence[Any], places: NDArray[np.int64]) -> Iterator[tuple[Any, int]]:
    """Pieces of the rows of pictures that stand together in a prompt.

    Args:
        features: Rows [K, hidden] of each picture, in the order of the prompt.
        places: int64, where in the prompt all these rows stand, ascending.

    Yields:
        Rows, and where in the prompt the first of them stands.
    """
    row = 0
    for rows in features:
        count, start = len(rows), 0
        for first, length in runs(places[row : row + count]):  # a picture may be several spans
            yield rows if length == count else rows[np.arange(start, start + length)], first
            start += length
        row += count


@dataclass(frozen=True, slots=True)
class DevicePrompt:
    """Embeddings [1, S, hidden] of a prompt, in the buffer that the LLM engine reads.

    Also what decoder layers add to its rows.

    Attributes:
        shape: As of an array.
        address: Where they are.
        number: Which prompt of its writer this is; only the latest is still there.
    """

    shape: tuple[int, int, int]
    address: int
    number: int


class PromptWriter:
    """Embeds prompts on the device: text rows come from the host, image rows stay there.

    Args:
        cuda: The GPU.
        stream: On which the copies run.
        max_rows: Longest prompt.
        hidden_size: Numbers of a row.
        dtype: Of the embeddings.

    Attributes:
        number: Of the latest prompt.
        planes: Lays out what decoder layers add to the rows, where the model has such.
    """

    def __init__(
        self, cuda: Cuda, stream: Any, max_rows: int, hidden_size: int, dtype: np.dtype[Any]
    ) -> None:
        self._cuda, self._stream = cuda, stream
        self._row_bytes = hidden_size * dtype.itemsize
        self._buffer = DeviceBuffer(cuda, max_rows * self._row_bytes)
        self._host = HostBuffer(cuda, max_rows * self._row_bytes)
        self._staging = self._host.array((max_rows, hidden_size), dtype)
        self.number = 0
        self.planes: PlaneWriter | None = None

    def write(
        self,
        ids: NDArray[np.int64],
        is_visual: NDArray[np.bool_],
        features: Sequence[Any],
        table: EmbeddingTable,
    ) -> DevicePrompt:
        """Embed a prompt; the one before is gone.

        Args:
            ids: int64 [S].
            is_visual: bool [S].
            features: Kept rows [K, hidden] of each picture, in the order of the prompt.
            table: Token embeddings.
        """
        self._cuda.synchronize(self._stream)  # the staging rows may still be on their way
        self.number += 1
        is_text = ~is_visual
        self._staging[: len(ids)][is_text] = table.rows(ids[is_text])
        for first, count in runs(np.flatnonzero(is_text)):
            self._upload(self._staging, first, first, count)
        for rows, first in stretches(features, np.flatnonzero(is_visual)):
            self._place_stretch(rows, first)
        return DevicePrompt(
            (1, len(ids), self._staging.shape[1]), self._buffer.address, self.number
        )

    def upload(self, embeds: NDArray[np.floating]) -> DevicePrompt:
        """Take embeddings [1, S, hidden] that were made on the host."""
        self._cuda.synchronize(self._stream)
        self.number += 1
        rows = embeds.shape[1]
        self._staging[:rows] = embeds[0]
        self._upload(self._staging, 0, 0, rows)
        return DevicePrompt((1, rows, embeds.shape[2]), self._buffer.address, self.number)

    def _place_stretch(self, rows: Any, first: int) -> None:
        """Copy rows behind one another, from row ``first`` of the prompt on."""
        if not isinstance(rows, DeviceRows):
            rows = np.ascontiguousarray(rows, self._staging.dtype)
            self._staging[first : first + len(rows)] = rows
            self._upload(self._staging, first, first, len(rows))
            return
        if rows.dtype != self._staging.dtype:
            raise ValueError(f"features are {rows.dtype}, embeddings {self._staging.dtype}")
        target = self._buffer.address + first * self._row_bytes
        for offset, size in rows.pieces():
            self._cuda.copy(target, rows.address + offset, size, self._stream)
            target += size

    def _upload(self, rows: NDArray[Any], source: int, target: int, count: int) -> None:
        self._cuda.upload(
            self._buffer.address + target * self._row_bytes,
            rows.ctypes.data + source * self._row_bytes,
            count * self._row_bytes,
            self._stream,
        )
