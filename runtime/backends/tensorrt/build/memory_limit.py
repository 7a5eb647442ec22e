"""How much memory the builder may give to a kernel's workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.runtime.reports.plan.tensorrt import workspace_bytes

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.cuda_device import CudaDevice
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["workspace_limit"]

_WITHOUT_DEVICE = 1 << 30  # ahead of time: what the smallest GPU of the lane can spare


def workspace_limit(manifest: Manifest, device: CudaDevice | None) -> int:
    """Bytes of workspace that the memory plan leaves while the largest engine is built.

    Args:
        manifest: Of the engine directory.
        device: The GPU; None where the build is ahead of time.
    """
    if device is None:
        return _WITHOUT_DEVICE
    # Engines are built one after the other, and each graph's weights lie in one file.
    largest = max(
        (r.size for name, r in manifest.files.items() if name.endswith(".data")), default=0
    )
    return workspace_bytes(device.memory_bytes, largest, shared=device.integrated)
