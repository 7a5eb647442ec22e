"""Memory that is given back when nothing refers to it any more."""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from divprune.runtime.backends.cuda.cuda import Cuda

__all__ = ["ALIGNMENT", "BufferPool", "DeviceBuffer", "HostBuffer", "align"]

ALIGNMENT = 256  # of every address that TensorRT is given


def align(num_bytes: int) -> int:
    """The next multiple of ``ALIGNMENT``."""
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


class DeviceBuffer:
    """Bytes on the device."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self.num_bytes = max(1, num_bytes)
        self.address = cuda.malloc(self.num_bytes)
        self._release = weakref.finalize(self, cuda.free, self.address)

    def free(self) -> None:
        """Give the memory back now."""
        self._release()


class HostBuffer:
    """Page-locked bytes on the host, as numpy arrays of any type."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self.num_bytes = max(1, num_bytes)
        self.address = cuda.malloc_host(self.num_bytes)
        weakref.finalize(self, cuda.free_host, self.address)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> NDArray[Any]:
        """A view of the memory from ``offset`` on; it must not outlive the buffer."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if offset + size > self.num_bytes:
            raise ValueError(f"{offset + size} bytes of a buffer of {self.num_bytes}")
        memory = (ctypes.c_char * size).from_address(self.address + offset)
        return np.ndarray(shape, dtype, memoryview(memory))


class BufferPool:
    """Device buffers of one size that are used again once their user is gone.

    Allocating on the device waits for everything that runs there.
    """

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self._cuda, self._num_bytes = cuda, num_bytes
        self._free: list[DeviceBuffer] = []

    def take(self, user: object) -> DeviceBuffer:
        """A buffer until ``user`` is collected as garbage."""
        buffer = self._free.pop() if self._free else DeviceBuffer(self._cuda, self._num_bytes)
        weakref.finalize(user, self._free.append, buffer)
        return buffer
