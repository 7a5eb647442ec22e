"""Kernels compiled for the host, behind the driver functions that launch them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from divprune.plugins.driver import Driver
from divprune.plugins.ptx import CLUSTER, GRID, HALF_GRAM, SOURCE_FILE, read_ptx, read_source
from divprune.runtime.backends.cuda import kernels

__all__ = ["MANY", "EmulatedDriver", "EmulatedManyDriver", "EmulatedReductions"]

_FOLDER = Path(__file__).parent
_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-shared", "-w"]
_FLAGS += ["-U_FORTIFY_SOURCE"]  # it takes the fibres' longjmp for a mistake
_ENTRY = re.compile(r"\.entry (\w+)\(")
MANY = (HALF_GRAM, GRID, CLUSTER)
"""The kernels for many tokens."""


class EmulatedDriver(Driver):
    """A driver whose only device runs the kernel on the host, thread blocks as fibres.

    Args:
        folder: Where the compiled library goes.
        source: The CUDA source; the shipped one by default.
    """

    def __init__(self, folder: Path, source: str | None = None) -> None:
        text = source or SOURCE_FILE.read_text()
        self._compile(folder, {"kernel.cu": text}, _ENTRY.findall(read_ptx()))

    def _compile(
        self, folder: Path, sources: Mapping[str, str], entries: list[str], *options: object
    ) -> None:
        if sys.platform != "linux" or (compiler := shutil.which("g++")) is None:
            pytest.skip("emulating the kernel needs Linux and g++")
        self.path = folder / "libcuda_emulated.so"
        options = ("-include", _FOLDER / "block_emulator.h", *options)
        for name, text in sources.items():
            (folder / name).write_text(text)
            options += ("-include", folder / name)
        options += ("-D", f"ENTRIES={' '.join(f'ENTRY({entry})' for entry in entries)}")
        command = [compiler, *_FLAGS, *options, _FOLDER / "emulated_driver.cpp", "-o", self.path]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(done.stderr, pytrace=False)
        self._emulated = ctypes.CDLL(str(self.path))
        super().__init__(self._emulated)

    def set_schedule(self, number: int) -> None:
        """Choose the order in which warps and lanes run, from the next launch on."""
        self._emulated.emulator_set_schedule(ctypes.c_uint64(number))

    def set_capability(self, number: int) -> None:
        """Choose the compute capability, such as 90."""
        self._emulated.emulator_set_capability(number)

    def set_newest_ptx(self, version: float) -> None:
        """Choose the newest version of PTX that it takes, such as 8.5."""
        self._emulated.emulator_set_newest_ptx(ctypes.c_double(version))


class EmulatedManyDriver(EmulatedDriver):
    """The same with the kernels for many tokens instead.

    Args:
        folder: Where the compiled library goes.
        changes: Parts of the sources, and what comes instead of each; LACKS there is true where
            ``lack`` was called with the number of the change.
    """

    def __init__(self, folder: Path, changes: Sequence[tuple[str, str]] = ()) -> None:
        files = dict.fromkeys(file.source for file in MANY)
        sources = {file.name: read_source(file).decode() for file in files}
        for number, (part, instead) in enumerate(changes):
            assert sum(text.count(part) for text in sources.values()) == 1, part
            instead = instead.replace("LACKS", f"(lacks == {number})")
            sources = {name: text.replace(part, instead) for name, text in sources.items()}
        entries = [name for file in MANY for name in _ENTRY.findall(read_ptx(file.ptx))]
        options = ("-DBLOCKS_AT_ONCE", "-include", _FOLDER / "device_emulator.h")
        self._compile(folder, sources, entries, *options)

    def lack(self, number: int) -> None:
        """Do without one of the parts; -1 has all."""
        self._emulated.emulator_set_lack(number)

    def num_launches(self, entry: str) -> int:
        """How often an entry has been launched."""
        return int(self._emulated.emulator_launches(entry.encode()))


class EmulatedReductions(EmulatedDriver):
    """The same with the kernels of ``runtime/backends/cuda`` instead."""

    def __init__(self, folder: Path) -> None:
        source = {"kernels.cu": kernels.SOURCE_FILE.read_text()}
        self._compile(folder, source, _ENTRY.findall(kernels.PTX_FILE.read_text()))
