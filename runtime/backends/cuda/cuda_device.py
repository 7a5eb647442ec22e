"""Properties of the first NVIDIA GPU, from the driver through ctypes: needs no CUDA package."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

__all__ = ["CudaDevice", "find_cuda_device"]

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """The first GPU.

    Attributes:
        name: Such as ``Orin`` or ``NVIDIA GeForce RTX 4090``.
        compute_capability: Such as ``8.7``.
        memory_bytes: All of its memory; on a Jetson it is the system's.
        cuda: Newest CUDA version that the driver runs, such as ``12.6``.
        integrated: Whether it shares the host's memory, as on a Jetson.
    """

    name: str
    compute_capability: str
    memory_bytes: int
    cuda: str
    integrated: bool = False


def find_cuda_device(libraries: tuple[str, ...] = _LIBRARIES) -> CudaDevice | None:
    """The first GPU; None without a driver or a GPU."""
    for name in libraries:
        try:
            return _ask(ctypes.CDLL(name))
        except (OSError, AttributeError):
            continue
    return None


def _ask(driver: Any) -> CudaDevice:
    """Read the facts from the CUDA driver.

    Raises:
        OSError: if a call fails, such as where there is a driver but no GPU.
    """
    device, number, total = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _require(driver.cuInit(0))
    _require(driver.cuDeviceGet(ctypes.byref(device), 0))
    _require(driver.cuDeviceGetName(name, _NAME_BYTES, device))
    _require(driver.cuDeviceTotalMem_v2(ctypes.byref(total), device))
    facts = []
    for attribute in (_MAJOR, _MINOR, _INTEGRATED):
        _require(driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device))
        facts.append(number.value)
    major, minor, integrated = facts
    _require(driver.cuDriverGetVersion(ctypes.byref(number)))
    return CudaDevice(
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major}.{minor}",
        memory_bytes=total.value,
        cuda=f"{number.value // 1000}.{number.value % 1000 // 10}",
        integrated=bool(integrated),
    )


def _require(status: int) -> None:
    if status != 0:
        raise OSError(f"the CUDA driver answers with error {status}")
