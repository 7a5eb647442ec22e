"""Host memory of an engine build, and the workspace limit that follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.backends.cuda.cuda_device import CudaDevice
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["CONTEXT_BYTES", "build_peak", "workspace_bytes", "workspace_limit"]

_MIB, _GIB = 1 << 20, 1 << 30
CONTEXT_BYTES = 300 * _MIB  # a CUDA context with the kernels' code: an estimate
_BUILD_PROCESS = 450 * _MIB
_BUILD_COPIES = 3  # of the weights: parsed, being compiled, in the engine
_SMALLEST_WORKSPACE, _LARGEST_WORKSPACE = 128 * _MIB, 4 * _GIB
_WITHOUT_DEVICE = 1 << 30  # ahead of time: what the smallest GPU of the lane can spare


def workspace_limit(manifest: Manifest, device: CudaDevice | None) -> int:
    """Bytes of workspace that the memory plan leaves while the largest engine is built.

    Args:
        manifest: Manifest of the engine directory.
        device: The GPU; None where the build is ahead of time.
    """
    if device is None:
        return _WITHOUT_DEVICE
    # Engines are built one after the other, and each graph's weights lie in one file.
    largest = max(
        (r.size for name, r in manifest.files.items() if name.endswith(".data")), default=0
    )
    return workspace_bytes(device.memory_bytes, largest, shared=device.integrated)


def build_peak(engine_bytes: int) -> int:
    """Peak bytes of the builder for an engine of that size, workspace not counted."""
    return _BUILD_PROCESS + _BUILD_COPIES * engine_bytes


def workspace_bytes(available: int, engine_bytes: int, *, shared: bool) -> int:
    """Workspace limit in bytes of a kernel while the largest engine is built.

    Args:
        available: Bytes of the GPU's memory that the system leaves.
        engine_bytes: Weights of the largest engine.
        shared: Whether the builder's copies of the weights lie in the same memory.

    Returns:
        A quarter of what the builder leaves, in whole MiB, between 128 MiB and 4 GiB: less and
        kernels fail that would fit, and no kernel needs more.
    """
    needed = build_peak(engine_bytes) if shared else CONTEXT_BYTES + engine_bytes
    spare = (available - needed) // 4
    return max(_SMALLEST_WORKSPACE, min(_LARGEST_WORKSPACE, spare // _MIB * _MIB))
