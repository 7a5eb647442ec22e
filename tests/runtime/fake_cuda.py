"""CUDA's runtime API on host memory, as lazy as a GPU: a stream does nothing until waited for.

Fresh device memory is full of garbage (NaN, of any float type); copies are checked against what
is allocated. Recording a stream and launching the graph work, so that addresses which have moved
since show up.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["FakeCuda", "FakeKernels"]

ALIGNMENT = 256
GARBAGE = 0xFF
_Work = Callable[[], None]


class Kind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class DeviceAttribute(enum.IntEnum):
    cudaDevAttrIntegrated = 18


class FakeCuda:
    """Stands in for ``cuda.bindings.runtime``; sizes of memory are those of ``memory_bytes``."""

    cudaMemcpyKind = Kind
    cudaDeviceAttr = DeviceAttribute
    cudaStreamCaptureMode = CaptureMode

    def __init__(self, memory_bytes: int = 1 << 40) -> None:
        self.memory_bytes = memory_bytes
        self.calls: list[str] = []
        self.capture_fails = self.instantiate_fails = False
        self.integrated = 0
        self.peak = 0  # the most bytes that were allocated at once
        self.graphs = 0  # recorded, whether they can be launched or not, and not destroyed
        self._blocks: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._pinned: dict[int, int] = {}
        self._queues: dict[int, list[_Work]] = {}
        self._recording: dict[int, list[_Work]] = {}

    def enqueue(self, stream: int, work: _Work) -> None:
        """Put work on a stream, or into its recording."""
        if stream in self._recording:
            self._recording[stream].append(work)
        else:
            self._queues[stream].append(work)

    @property
    def allocated(self) -> int:
        return sum(self._sizes.values())

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, {2: b"out of memory", 1: b"invalid argument"}.get(int(status), b"failed")

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (0,)

    def cudaDeviceGetAttribute(self, attribute: DeviceAttribute, device: int) -> tuple[int, int]:
        assert attribute == DeviceAttribute.cudaDevAttrIntegrated
        return 0, self.integrated

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.memory_bytes - self.allocated, self.memory_bytes

    def cudaMalloc(self, size: int) -> tuple[int, int | None]:
        if self.allocated + size > self.memory_bytes:
            return 2, None
        address = self._allocate(size)
        self._sizes[address] = size
        self.peak = max(self.peak, self.allocated)
        return 0, address

    def cudaFree(self, address: int) -> tuple[int]:
        if address not in self._sizes:
            return (1,)
        del self._blocks[address], self._sizes[address]
        return (0,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        address = self._allocate(size)
        self._pinned[address] = size
        return 0, address

    def cudaFreeHost(self, address: int) -> tuple[int]:
        del self._blocks[address], self._pinned[address]
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        stream = 1000 + len(self._queues)
        self._queues[stream] = []
        return 0, stream

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        if stream in self._recording:
            return (900,)
        self.calls.append("synchronize")
        queue, self._queues[stream] = self._queues[stream], []
        for work in queue:
            work()
        return (0,)

    def cudaMemsetAsync(self, address: int, value: int, size: int, stream: int) -> tuple[int]:
        if not self._on_device(address, size):
            return (1,)
        self.enqueue(stream, lambda: ctypes.memset(address, value, size))
        return (0,)

    def cudaMemset2DAsync(
        self, address: int, pitch: int, value: int, width: int, height: int, stream: int
    ) -> tuple[int]:
        if width > pitch or not self._on_device(address, pitch * (height - 1) + width):
            return (1,)
        self.calls.append(f"Memset2D {width * height}")

        def work() -> None:
            for row in range(height):
                ctypes.memset(address + row * pitch, value, width)

        self.enqueue(stream, work)
        return (0,)

    def cudaMemcpyAsync(
        self, target: int, source: int, size: int, kind: Kind, stream: int
    ) -> tuple[int]:
        to_device = kind in (Kind.cudaMemcpyHostToDevice, Kind.cudaMemcpyDeviceToDevice)
        from_device = kind in (Kind.cudaMemcpyDeviceToHost, Kind.cudaMemcpyDeviceToDevice)
        if self._on_device(target, size) != to_device:
            return (1,)
        if self._on_device(source, size) != from_device:
            return (1,)
        self.calls.append(kind.name.removeprefix("cudaMemcpy"))
        self.enqueue(stream, lambda: ctypes.memmove(target, source, size))
        return (0,)

    def cudaMemcpy2DAsync(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        kind: Kind,
        stream: int,
    ) -> tuple[int]:
        assert kind == Kind.cudaMemcpyDeviceToDevice
        spans = ((target, target_pitch), (source, source_pitch))
        for address, pitch in spans:
            if width > pitch or not self._on_device(address, pitch * (height - 1) + width):
                return (1,)
        self.calls.append("2D")

        def work() -> None:
            for row in range(height):
                ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)

        self.enqueue(stream, work)
        return (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[int]:
        self.calls.append("capture")
        self._recording[stream] = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        recorded = self._recording.pop(stream)
        if self.capture_fails:
            return 901, None
        self.graphs += 1
        return 0, [*recorded, lambda: None]  # a handle, and so never false

    def cudaGraphInstantiate(self, graph: list[_Work], flags: int) -> tuple[int, Any]:
        if self.instantiate_fails:
            return 2, None
        self.graphs += 1
        return 0, list(graph)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        self.graphs -= 1
        return (0,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[int]:
        self.graphs -= 1
        self.calls.append("destroy graph")
        return (0,)

    def cudaGraphLaunch(self, graph: list[_Work], stream: int) -> tuple[int]:
        self.calls.append("launch graph")
        for work in graph:
            self.enqueue(stream, work)
        return (0,)

    def _allocate(self, size: int) -> int:
        block = (ctypes.c_char * (size + ALIGNMENT))()
        ctypes.memset(block, GARBAGE, size + ALIGNMENT)
        address = -(-ctypes.addressof(block) // ALIGNMENT) * ALIGNMENT
        self._blocks[address] = block
        return address

    def _on_device(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + length
            for start, length in self._sizes.items()
        )


class FakeKernels:
    """What the kernels compute, in numpy, on a stream of the fake CUDA."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda

    def largest_logit(self, logits: int, count: int, best: int, stream: int) -> None:
        def work() -> None:
            values = _array(logits, (count,), np.float32)
            index = int(np.argmax(values))
            out = _array(best, (1,), np.dtype([("index", np.int32), ("value", np.float32)]))
            out[0] = (index, values[index])

        self._cuda.enqueue(stream, work)

    def broken_rows(
        self, rows: int, count: int, width: int, itemsize: int, broken: int, stream: int
    ) -> None:
        def work() -> None:
            dtype = np.float16 if itemsize == 2 else np.float32
            finite = np.isfinite(_array(rows, (count, width), dtype)).all(axis=1)
            _array(broken, (count,), np.int32)[:] = ~finite

        self._cuda.enqueue(stream, work)


def _array(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, (ctypes.c_char * size).from_address(address))
