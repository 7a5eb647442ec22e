"""The little of NVIDIA's management library that a report needs, through ctypes.

nvidia-ml-py would save half of this file and cost every device 8,000 lines (0.4 MB, 26 ms).
"""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["Nvml", "open_nvml"]

_LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
_TEXT_BYTES = 96
_GRAPHICS_CLOCK, _MEMORY_CLOCK = 0, 2


class _Memory(ctypes.Structure):
    _fields_ = [
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    ]


class Nvml:
    """The first GPU of an initialised library; every reading is None where NVML refuses it.

    Jetson modules have NVML since JetPack 6, but no memory of their own to report.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._gpu = ctypes.c_void_p()
        index = ctypes.c_uint(0)
        if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._gpu)) != 0:
            raise OSError("NVML sees no GPU")

    def name(self) -> str | None:
        """Such as ``NVIDIA RTX A2000``."""
        return self._text("nvmlDeviceGetName", self._gpu)

    def driver(self) -> str | None:
        """Version of the driver."""
        return self._text("nvmlSystemGetDriverVersion")

    def clocks(self) -> str | None:
        """Current graphics and memory clock."""
        found = []
        for what, kind in (("graphics", _GRAPHICS_CLOCK), ("memory", _MEMORY_CLOCK)):
            mhz = ctypes.c_uint()
            call = self._library.nvmlDeviceGetClockInfo
            if call(self._gpu, ctypes.c_uint(kind), ctypes.byref(mhz)) == 0:
                found.append(f"{what} {mhz.value} MHz")
        return ", ".join(found) or None

    def memory_in_use(self) -> int | None:
        """Bytes in use on the GPU, by every process."""
        memory = _Memory()
        failed = self._library.nvmlDeviceGetMemoryInfo(self._gpu, ctypes.byref(memory))
        return None if failed else memory.used

    def _text(self, function: str, *arguments: Any) -> str | None:
        buffer = ctypes.create_string_buffer(_TEXT_BYTES)
        failed = getattr(self._library, function)(*arguments, buffer, ctypes.c_uint(_TEXT_BYTES))
        return None if failed else buffer.value.decode("utf-8", "replace")


def open_nvml() -> Nvml | None:
    """The first NVIDIA GPU; None without a driver or a GPU."""
    for name in _LIBRARIES:
        try:
            library = ctypes.CDLL(name)
            if library.nvmlInit_v2() == 0:
                return Nvml(library)
        except (OSError, AttributeError):
            continue
    return None
