"""cuda-python with errors that say what to do. The only module that calls it.

Addresses, streams and graphs are plain integers and opaque handles; sizes are bytes.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from divprune.runtime.errors import BackendError

__all__ = ["Cuda", "open_cuda", "out_of_memory"]

_MEMINFO = Path("/proc/meminfo")
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_OLD_DRIVER = 35  # cudaErrorInsufficientDriver
_NON_BLOCKING_STREAM = 1
_THREAD_LOCAL_CAPTURE = "cudaStreamCaptureModeThreadLocal"
_CUDA_PYTHON = "cuda-python 12.6.2 or newer, of the CUDA version of this machine"
_INSTALL = (
    'pip install "cuda-python>=12.6.2,<12.7" (JetPack 6), "cuda-python>=12.6.2,<13" (CUDA 12) or'
    ' "cuda-python>=13"'
)


def open_cuda() -> Cuda:
    """The first GPU, ready to use.

    Raises:
        BackendError: if cuda-python is not installed or too new, or there is no GPU.
    """
    try:
        runtime = import_module("cuda.bindings.runtime")
        cuda = Cuda(runtime)
        cuda.call("cudaSetDevice", 0)
    except ImportError as error:
        raise BackendError(
            "cuda-python cannot be imported", expected=_CUDA_PYTHON, found=error, fix=_INSTALL
        ) from error
    except RuntimeError as error:  # of cuda-python 12.6.2
        raise BackendError(
            "cuda-python finds no NVIDIA driver",
            expected="libcuda.so.1",
            found=error,
            fix="run on a machine with an NVIDIA GPU and its driver",
        ) from error
    attribute = runtime.cudaDeviceAttr.cudaDevAttrIntegrated
    return Cuda(runtime, integrated=bool(cuda.call("cudaDeviceGetAttribute", attribute, 0)))


class Cuda:
    """CUDA's runtime API.

    Args:
        runtime: The module ``cuda.bindings.runtime``, or what stands in for it.
        integrated: Whether the GPU has the host's memory, as on a Jetson.
    """

    def __init__(self, runtime: Any, *, integrated: bool = False) -> None:
        self._runtime, self._integrated = runtime, integrated
        self._kinds = runtime.cudaMemcpyKind

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime API; returns what it gives beside its status.

        Raises:
            BackendError: if it fails.
        """
        status, *results = getattr(self._runtime, function)(*arguments)
        if int(status) != 0:
            raise self._error(function, status)
        return results[0] if len(results) == 1 else tuple(results) or None

    def malloc(self, num_bytes: int) -> int:
        """Address of device memory, aligned to 256 bytes."""
        return int(self.call("cudaMalloc", num_bytes))

    def free(self, address: int) -> None:
        """Give device memory back."""
        self.call("cudaFree", address)

    def malloc_host(self, num_bytes: int) -> int:
        """Address of page-locked host memory."""
        return int(self.call("cudaHostAlloc", num_bytes, 0))

    def free_host(self, address: int) -> None:
        """Give page-locked host memory back."""
        self.call("cudaFreeHost", address)

    def free_memory(self) -> int:
        """Bytes that can be had on the device.

        Where it has the host's memory, CUDA does not count the file cache, which an allocation
        takes back: on a Jetson that has just copied a model that is most of the memory.
        """
        if self._integrated and (available := _available_memory()) is not None:
            return available
        free, _ = self.call("cudaMemGetInfo")
        return int(free)

    def zero(self, address: int, num_bytes: int, stream: Any) -> None:
        """Fill with zeros."""
        self.call("cudaMemsetAsync", address, 0, num_bytes, stream)

    def zero_2d(self, address: int, pitch: int, width: int, height: int, stream: Any) -> None:
        """Fill ``height`` pieces of ``width`` bytes, each a pitch after the last, with zeros."""
        self.call("cudaMemset2DAsync", address, pitch, 0, width, height, stream)

    def upload(self, target: int, source: int, num_bytes: int, stream: Any) -> None:
        """Copy from the host; ``source`` must stay until the stream is there."""
        kind = self._kinds.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", target, source, num_bytes, kind, stream)

    def download(self, target: int, source: int, num_bytes: int, stream: Any) -> None:
        """Copy to the host."""
        kind = self._kinds.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", target, source, num_bytes, kind, stream)

    def copy(self, target: int, source: int, num_bytes: int, stream: Any) -> None:
        """Copy on the device."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        self.call("cudaMemcpyAsync", target, source, num_bytes, kind, stream)

    def copy_2d(
        self,
        target: int,
        target_pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        height: int,
        stream: Any,
    ) -> None:
        """Copy ``height`` pieces of ``width`` bytes, each a pitch after the last."""
        kind = self._kinds.cudaMemcpyDeviceToDevice
        pieces = (target, target_pitch, source, source_pitch, width, height)
        self.call("cudaMemcpy2DAsync", *pieces, kind, stream)

    def make_stream(self) -> Any:
        """A stream of its own."""
        return self.call("cudaStreamCreateWithFlags", _NON_BLOCKING_STREAM)

    def synchronize(self, stream: Any) -> None:
        """Wait until the stream is done."""
        self.call("cudaStreamSynchronize", stream)

    def begin_capture(self, stream: Any) -> None:
        """Record what is enqueued on the stream from here on instead of running it."""
        mode = getattr(self._runtime.cudaStreamCaptureMode, _THREAD_LOCAL_CAPTURE)
        self.call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: Any) -> Any:
        """End the recording: a graph that can be launched."""
        graph = self.call("cudaStreamEndCapture", stream)
        try:
            return self.call("cudaGraphInstantiate", graph, 0)
        finally:
            self.call("cudaGraphDestroy", graph)

    def abandon_capture(self, stream: Any) -> None:
        """End the recording and throw it away, whatever state an error has left it in."""
        status, graph = self._runtime.cudaStreamEndCapture(stream)
        if int(status) == 0 and graph:
            self.call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: Any, stream: Any) -> None:
        """Run what was recorded."""
        self.call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Forget a recording."""
        self.call("cudaGraphExecDestroy", graph)

    def _error(self, function: str, status: Any) -> BackendError:
        _, text = self._runtime.cudaGetErrorString(status)
        found = f"{text.decode() if isinstance(text, bytes) else text} ({int(status)})"
        if int(status) == _OUT_OF_MEMORY:
            return out_of_memory(found)
        if int(status) == _OLD_DRIVER:
            return BackendError(
                "cuda-python is of a newer CUDA version than the NVIDIA driver",
                expected=_CUDA_PYTHON,
                found=found,
                fix=_INSTALL,
            )
        return BackendError(f"{function} failed", found=found)


def out_of_memory(found: str) -> BackendError:
    """The error for an allocation on the GPU that failed, in CUDA's or TensorRT's words."""
    return BackendError(
        "the GPU is out of memory",
        expected="room for weights, activations and the KV cache",
        found=found,
        fix="close other programs, export with a smaller --max-seq-len (with --no-baseline it may"
        " be smaller) or with --quant int4, or run divprune-build with --weight-streaming",
    )


def _available_memory() -> int | None:
    """What the system says that new programs can have, in bytes; None where it does not."""
    try:
        found = re.search(r"(?m)^MemAvailable:\s+(\d+) kB$", _MEMINFO.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
