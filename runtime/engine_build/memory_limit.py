"""How much memory the builder may give to a kernel's workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.cuda_device import CudaDevice
    from divprune.runtime.manifest import Manifest

__all__ = ["workspace_limit"]

_MIB, _GIB = 1 << 20, 1 << 30
_SMALLEST, _LARGEST = 128 * _MIB, 4 * _GIB
_WITHOUT_DEVICE = _GIB  # ahead of time: what the smallest GPU of the lane can spare


def workspace_limit(manifest: Manifest, device: CudaDevice | None) -> int:
    """Bytes of workspace: a quarter of what the weights and the cache leave of the device.

    While it builds, TensorRT holds the weights of the graph once, tries kernels beside them,
    and on a Jetson shares the memory with everything else; more than 4 GiB is never used.

    Args:
        manifest: Of the engine directory.
        device: The GPU; None where the build is ahead of time.
    """
    if device is None:
        return _WITHOUT_DEVICE
    weights = sum(r.size for name, r in manifest.files.items() if name.endswith(".data"))
    cache = manifest.kv_cache.bytes_per_token * manifest.max_seq_len
    spare = (device.memory_bytes - weights - cache) // 4
    return max(_SMALLEST, min(_LARGEST, spare // _MIB * _MIB))
