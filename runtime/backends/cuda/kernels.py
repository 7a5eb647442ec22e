"""The kernels of ``kernels.cu``, launched through the CUDA driver."""

from __future__ import annotations

import ctypes
import shlex
from pathlib import Path
from typing import Protocol

from divprune.plugins.driver import Driver
from divprune.plugins.module import Module
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
        self._module = Module(driver, _read_ptx())

    def largest_logit(self, logits: int, count: int, best: int, stream: int) -> None:
        """Write index (int32) and value of the largest of float32 [count] to ``best``."""
        values = (ctypes.c_uint64(logits), ctypes.c_int32(count), ctypes.c_uint64(best))
        self._module.launch("largest_logit", 1, _THREADS, values, stream)

    def broken_rows(
        self, rows: int, count: int, width: int, itemsize: int, broken: int, stream: int
    ) -> None:
        """Write int32 [count] to ``broken``: 1 for each row [width] that holds a NaN or Inf."""
        values = (ctypes.c_uint64(rows), ctypes.c_int32(width), ctypes.c_uint64(broken))
        self._module.launch(f"broken_rows_{8 * itemsize}", count, _ROW_THREADS, values, stream)


def _read_ptx() -> str:
    try:
        return PTX_FILE.read_text(encoding="ascii")
    except FileNotFoundError:
        raise BackendError(
            "the kernels of the TensorRT backend are missing from this installation",
            expected=PTX_FILE,
            fix="install divprune-edge anew, or run python -m divprune.plugins.compile_ptx --source"
            f" {shlex.quote(str(SOURCE_FILE))}",
        ) from None
