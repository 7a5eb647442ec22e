"""The KV cache on the device, and where new rows go.

| dialect | the graph | the runtime |
|---|---|---|
| onnx | reads and writes one buffer: past and present have the same address | nothing |
| delta | gives the new rows [1, KV heads, S, head dim] | copies them behind the filled slots |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends.cuda.buffers import DeviceBuffer, align

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.cuda import Cuda
    from divprune.runtime.directory.manifest import KVCacheSpec

__all__ = ["Copy2D", "DeviceCache", "slot_copies"]


@dataclass(frozen=True, slots=True)
class Copy2D:
    """``height`` pieces of ``width`` bytes; offsets and pitches in bytes."""

    target: int
    target_pitch: int
    source: int
    source_pitch: int
    width: int
    height: int


def slot_copies(
    num_tensors: int, num_heads: int, capacity: int, row_bytes: int, *, filled: int, rows: int
) -> list[Copy2D]:
    """Copies new rows from their buffer into the cache.

    Both buffers hold the tensors one behind the other, each beginning at a multiple of 256
    bytes. Where no gaps arise from that, all heads of all tensors lie at one pitch, and one
    strided copy writes them all.

    Args:
        num_tensors: A key and a value for each layer.
        num_heads: KV heads of each.
        capacity: Slots of the cache.
        row_bytes: Bytes of one row of one head.
        filled: Slots that are taken.
        rows: New rows.
    """
    cache_tensor, new_tensor = (num_heads * n * row_bytes for n in (capacity, rows))
    pitches = capacity * row_bytes, rows * row_bytes
    start, width = filled * row_bytes, rows * row_bytes
    if cache_tensor == align(cache_tensor) and new_tensor == align(new_tensor):
        return [Copy2D(start, pitches[0], 0, pitches[1], width, num_tensors * num_heads)]
    strides = align(cache_tensor), align(new_tensor)
    return [
        Copy2D(n * strides[0] + start, pitches[0], n * strides[1], pitches[1], width, num_heads)
        for n in range(num_tensors)
    ]


class DeviceCache:
    """Keys and values of every layer, in one buffer.

    Args:
        cuda: The GPU.
        spec: Shape of the cache.
        capacity: Slots.
        dialect: ``onnx`` or ``delta``.
        stream: On which it is used.
        first_layer: Number of the first of its layers in the decoder.
    """

    def __init__(
        self,
        cuda: Cuda,
        spec: KVCacheSpec,
        capacity: int,
        dialect: str,
        stream: Any,
        first_layer: int = 0,
    ) -> None:
        self._cuda, self._stream, self._dialect = cuda, stream, dialect
        self._spec, self._capacity = spec, capacity
        self._row_bytes = spec.head_dim * np.dtype(spec.dtype).itemsize
        layers = range(first_layer, first_layer + spec.num_layers)
        self._tensors = [f"{part}_{layer}" for layer in layers for part in ("key", "value")]
        stride = self._stride(capacity)
        self._cache = DeviceBuffer(cuda, stride * len(self._tensors))
        self._new: DeviceBuffer | None = None
        cuda.zero(self._cache.address, self._cache.num_bytes, stream)

    @property
    def num_bytes(self) -> int:
        """Bytes of the cache itself."""
        return self._cache.num_bytes

    def clear(self, slots: int) -> None:
        """Make the first ``slots`` slots of every head zero, as all are from the start.

        The graphs multiply slots that do not count by zero instead of leaving them out: a NaN
        in one, from fresh memory or a sequence that overflowed, would spoil all that follow.
        """
        num_heads, pitch = self._spec.num_kv_heads, self._capacity * self._row_bytes
        base, width, stride = (
            self._cache.address,
            slots * self._row_bytes,
            self._stride(self._capacity),
        )
        if stride == num_heads * pitch:  # no gaps: all heads of all tensors lie at one pitch
            pieces = [(base, len(self._tensors) * num_heads)]
        else:
            pieces = [(base + n * stride, num_heads) for n in range(len(self._tensors))]
        for address, height in pieces:
            self._cuda.zero_2d(address, pitch, width, height, self._stream)

    @property
    def last_keys(self) -> int:
        """Address of the keys of the last layer: [1, KV heads, capacity, head dim]."""
        return self._cache.address + (len(self._tensors) - 2) * self._stride(self._capacity)

    def addresses(self, rows: int) -> dict[str, int]:
        """Addresses of all inputs and outputs of the graph that belong to the cache."""
        base, stride = self._cache.address, self._stride(self._capacity)
        places = {name: base + i * stride for i, name in enumerate(self._tensors)}
        inputs = {f"past_{name}": address for name, address in places.items()}
        if self._dialect != "delta":
            return inputs | {f"present_{name}": address for name, address in places.items()}
        new, stride = self._reserve_new(rows), self._stride(rows)
        return inputs | {f"new_{name}": new + i * stride for i, name in enumerate(self._tensors)}

    def commit(self, filled: int, rows: int) -> None:
        """Write the rows of the last run behind ``filled`` slots, where the graph did not."""
        if self._dialect != "delta":
            return
        new = self._reserve_new(rows)
        for copy in slot_copies(
            len(self._tensors),
            self._spec.num_kv_heads,
            self._capacity,
            self._row_bytes,
            filled=filled,
            rows=rows,
        ):
            self._cuda.copy_2d(
                self._cache.address + copy.target,
                copy.target_pitch,
                new + copy.source,
                copy.source_pitch,
                copy.width,
                copy.height,
                self._stream,
            )

    def _stride(self, rows: int) -> int:
        return align(self._spec.num_kv_heads * rows * self._row_bytes)

    def _reserve_new(self, rows: int) -> int:
        """Address of room for new rows; it may move when a longer prompt comes."""
        need = self._stride(rows) * len(self._tensors)
        if self._new is None or self._new.num_bytes < need:
            self._cuda.synchronize(self._stream)
            if self._new is not None:
                self._new.free()
            self._new = None
            self._new = DeviceBuffer(self._cuda, need)
        return self._new.address
