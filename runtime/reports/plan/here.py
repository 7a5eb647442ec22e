"""The machine this runs on, as a device to plan for."""

from __future__ import annotations

from pathlib import Path

from divprune.configs.device import Device
from divprune.runtime.backends.cuda.cuda_device import find_cuda_device

__all__ = ["this_machine"]

_MEMINFO = Path("/proc/meminfo")
_MIB = 1 << 20


def this_machine(target: str, meminfo: Path = _MEMINFO) -> Device | None:
    """The memory here that ``target`` would use: the host's, or that of the first GPU.

    Returns:
        None where it cannot be told: no ``/proc``, or no GPU for TensorRT.
    """
    if target != "onnxruntime":
        gpu = find_cuda_device()
        if gpu is None:
            return None
        total = gpu.memory_bytes // _MIB
        return Device("here", gpu.name, total, gpu.integrated, None, 1, target)
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
        kib = {name: int(rest.split()[0]) for name, _, rest in (ln.partition(":") for ln in lines)}
        total, available = kib["MemTotal"] >> 10, kib["MemAvailable"] >> 10
    except (OSError, KeyError, ValueError):
        return None
    return Device("here", "this machine", total, True, None, max(1, total - available), target)
