"""The kernels of ``kernels.cu``, launched through the CUDA driver."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Protocol

from divprune.plugins.driver import Driver
from divprune.runtime.errors import BackendError

__all__ = ["BEST_BYTES", "Kernels", "LoadedKernels"]

SOURCE_FILE = Path(__file__).with_name("kernels.cu")
PTX_FILE = Path(__file__).with_name("kernels.ptx")
BEST_BYTES = 8  # int32 index, float32 value
_THREADS = 1024
_ROW_THREADS = 128


class Kernels(Protocol):
    """Reductions on the device; addresses and the stream are integers."""

    def largest_logit(self, logits: int, count: int, best: int, stream: int) -> None:
        """Write index (int32) and value of the largest of float32 [count] to ``best``."""

    def broken_rows(
        self, rows: int, count: int, width: int, itemsize: int, broken: int, stream: int
    ) -> None:
        """Write int32 [count] to ``broken``: 1 for each row [width] that holds a NaN or Inf."""


class LoadedKernels:
    """The shipped PTX, loaded into the current CUDA context.

    Raises:
        BackendError: if the driver refuses it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._module = ctypes.c_void_p()
        driver.call("cuModuleLoadData", ctypes.byref(self._module), _read_ptx())
        self._entries: dict[str, ctypes.c_void_p] = {}

    def largest_logit(self, logits: int, count: int, best: int, stream: int) -> None:
        """Write index (int32) and value of the largest of float32 [count] to ``best``."""
        values = (ctypes.c_uint64(logits), ctypes.c_int32(count), ctypes.c_uint64(best))
        self._launch("largest_logit", 1, _THREADS, values, stream)

    def broken_rows(
        self, rows: int, count: int, width: int, itemsize: int, broken: int, stream: int
    ) -> None:
        """Write int32 [count] to ``broken``: 1 for each row [width] that holds a NaN or Inf."""
        values = (ctypes.c_uint64(rows), ctypes.c_int32(width), ctypes.c_uint64(broken))
        self._launch(f"broken_rows_{8 * itemsize}", count, _ROW_THREADS, values, stream)

    def _launch(
        self,
        name: str,
        blocks: int,
        threads: int,
        values: tuple[ctypes.c_uint64 | ctypes.c_int32, ...],
        stream: int,
    ) -> None:
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        shape = (blocks, 1, 1, threads, 1, 1)
        handle = ctypes.c_void_p(stream)
        self._driver.call("cuLaunchKernel", self._entry(name), *shape, 0, handle, addresses, None)

    def _entry(self, name: str) -> ctypes.c_void_p:
        if name not in self._entries:
            entry = ctypes.c_void_p()
            self._driver.call(
                "cuModuleGetFunction", ctypes.byref(entry), self._module, name.encode()
            )
            self._entries[name] = entry
        return self._entries[name]


def _read_ptx() -> bytes:
    try:
        return PTX_FILE.read_bytes()
    except FileNotFoundError:
        raise BackendError(
            "the kernels of the TensorRT backend are missing from this installation",
            expected=PTX_FILE,
            fix="install divprune-edge anew, or run python -m divprune.plugins.compile_ptx --source"
            f" {SOURCE_FILE}",
        ) from None
