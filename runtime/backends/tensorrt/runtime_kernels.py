"""Kernels that TensorRT-RTX compiles at run time: when, and where they are cached.

TensorRT has all kernels in the engine. TensorRT-RTX compiles them for the GPU at hand: shapes
that vary get fallback kernels at first and better ones later, unless it is told otherwise, and
everything is compiled again in every process unless it is given a cache.
"""

from __future__ import annotations

import logging
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["RuntimeKernels"]

log = logging.getLogger(__name__)

_DECODE = 0  # profile of the step that is recorded as a CUDA graph


class RuntimeKernels:
    """Makes the execution contexts of one engine.

    Args:
        library: TensorRT or TensorRT-RTX.
        engine: Deserialised.
        path: Its file. The kernels that TensorRT-RTX compiles go beside it, as ``.kernels``, when
            nobody needs the engine any more; a file of another driver or GPU is not used.
    """

    def __init__(self, library: TensorRT, engine: Any, path: Path) -> None:
        self._trt, self._engine, self._is_rtx = library.module, engine, library.is_rtx
        self._path = path.with_suffix(".kernels")
        self._cache: Any = None

    def make_context(self, profile: int) -> Any:
        """A context that is given its memory; None where the library refuses."""
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self._is_rtx:
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        if profile == _DECODE:
            # A recording keeps the kernels that it was made with: no fallback may be among them.
            eager = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        if self._cache is None:
            self._cache = self._open_cache(config)
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def _open_cache(self, config: Any) -> Any:
        cache, content = config.create_runtime_cache(), b""
        if self._path.exists():
            content = self._path.read_bytes()
            if not cache.deserialize(content):
                log.info("%s is of another GPU or driver; kernels are compiled anew", self._path)
        weakref.finalize(self, _save, cache, self._path, len(content))
        return cache


def _save(cache: Any, path: Path, size_before: int) -> None:
    """Write the cache where it has grown; a directory that cannot be written to stays as it is."""
    content = bytes(memoryview(cache.serialize()))
    if len(content) == size_before:
        return
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        log.info("kernels are not kept: %s", error)
        part.unlink(missing_ok=True)
