"""PTX in a CUDA context, and launches of what it holds."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from divprune.plugins.driver import Driver

__all__ = ["Module", "Value", "compute_capability"]

Value = ctypes.c_uint64 | ctypes.c_int32 | ctypes.c_float
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_CLUSTER_SIZE = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute with three numbers for a value."""

    _fields_ = (
        ("id", ctypes.c_uint),
        ("unused", ctypes.c_uint),
        ("value", ctypes.c_uint * 3),
        ("rest", ctypes.c_uint * 13),
    )


class _Configuration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("num_attributes", ctypes.c_uint),
    )


class Module:
    """The kernels of one PTX, loaded into the CUDA context that is current.

    Raises:
        BackendError: if the driver refuses it.
    """

    def __init__(self, driver: Driver, ptx: str) -> None:
        self._driver = driver
        self._handle = ctypes.c_void_p()
        self._entries: dict[str, ctypes.c_void_p] = {}
        driver.call("cuModuleLoadData", ctypes.byref(self._handle), ptx.encode())

    def launch(
        self,
        name: str,
        blocks: int,
        threads: int,
        values: Sequence[Value],
        stream: int = 0,
        together: Literal["cluster", "grid"] | None = None,
    ) -> None:
        """Enqueue a kernel.

        Args:
            name: Of the entry.
            blocks: How many.
            threads: Of each block.
            values: Of the entry's parameters, in their order.
            stream: The CUDA stream's handle; 0 is the default stream.
            together: That all blocks run at once: as one cluster, or as a cooperative grid.
        """
        entry, handle = self._entry(name), ctypes.c_void_p(stream)
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        shape = (blocks, 1, 1, threads, 1, 1)
        if together == "cluster":
            size = _Attribute(_CLUSTER_SIZE, 0, (blocks, 1, 1))
            given = _Configuration(shape[:3], shape[3:], 0, handle, ctypes.pointer(size), 1)
            self._driver.call("cuLaunchKernelEx", ctypes.byref(given), entry, addresses, None)
        elif together == "grid":
            self._driver.call("cuLaunchCooperativeKernel", entry, *shape, 0, handle, addresses)
        else:
            self._driver.call("cuLaunchKernel", entry, *shape, 0, handle, addresses, None)

    def _entry(self, name: str) -> ctypes.c_void_p:
        if name not in self._entries:
            entry = ctypes.c_void_p()
            self._driver.call(
                "cuModuleGetFunction", ctypes.byref(entry), self._handle, name.encode()
            )
            self._entries[name] = entry
        return self._entries[name]


def compute_capability(driver: Driver) -> tuple[int, int]:
    """Of the device whose context is current, such as (9, 0)."""
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    driver.call("cuCtxGetDevice", ctypes.byref(device))
    for number, attribute in ((major, _MAJOR), (minor, _MINOR)):
        driver.call("cuDeviceGetAttribute", ctypes.byref(number), attribute, device)
    return major.value, minor.value
