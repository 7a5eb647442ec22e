"""The kernel compiled for the host, behind the driver functions that launch it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from divprune.plugins.driver import Driver
from divprune.plugins.ptx import SOURCE_FILE

__all__ = ["EmulatedDriver"]

_FOLDER = Path(__file__).parent
_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-w"]
_FLAGS += ["-U_FORTIFY_SOURCE"]  # it takes the fibres' longjmp for a mistake


class EmulatedDriver(Driver):
    """A driver whose only device runs the kernel on the host, thread blocks as fibres.

    Args:
        folder: Where the compiled library goes.
        source: The CUDA source; the shipped one by default.
    """

    def __init__(self, folder: Path, source: str | None = None) -> None:
        if sys.platform != "linux" or (compiler := shutil.which("g++")) is None:
            pytest.skip("emulating the kernel needs Linux and g++")
        kernel, self.path = folder / "kernel.cu", folder / "libcuda_emulated.so"
        kernel.write_text(source or SOURCE_FILE.read_text())
        headers = ["-include", _FOLDER / "block_emulator.h", "-include", kernel]
        command = [compiler, *_FLAGS, *headers, _FOLDER / "emulated_driver.cpp", "-o", self.path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stderr, pytrace=False)
        self._emulated = ctypes.CDLL(str(self.path))
        super().__init__(self._emulated)

    def set_schedule(self, number: int) -> None:
        """Choose the order in which warps and lanes run, from the next launch on."""
        self._emulated.emulator_set_schedule(ctypes.c_uint64(number))
