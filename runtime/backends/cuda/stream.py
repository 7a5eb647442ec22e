"""A stream of the first GPU in the context that ONNX Runtime computes in."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.plugins.driver import Driver

__all__ = ["DeviceStream"]


class DeviceStream:
    """Kernels on it run behind what a session enqueued there that was given its handle.

    ONNX Runtime takes it as the provider option ``user_compute_stream``.

    Args:
        driver: Of CUDA.

    Attributes:
        handle: Of the stream.

    Raises:
        BackendError: if there is no GPU.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        device, stream = ctypes.c_int(), ctypes.c_void_p()
        self._context = ctypes.c_void_p()
        driver.call("cuInit", 0)
        driver.call("cuDeviceGet", ctypes.byref(device), 0)
        # The device's primary context is the one of CUDA's runtime API, which ONNX Runtime uses.
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.enter()
        driver.call("cuStreamCreate", ctypes.byref(stream), 0)
        self.handle = stream.value or 0

    def enter(self) -> None:
        """Make its context current in the calling thread, before kernels are loaded or launched."""
        self._driver.call("cuCtxSetCurrent", self._context)

    def synchronize(self) -> None:
        """Wait until everything on the stream is done."""
        self._driver.call("cuStreamSynchronize", ctypes.c_void_p(self.handle))
