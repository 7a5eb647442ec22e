"""The kernel launched through the CUDA driver, called with ctypes: no CUDA toolkit, no torch."""

from __future__ import annotations

import ctypes

from divprune.plugins.many_blocks import MANY_FROM, ManyBlocksKernel, Method, chosen_method
from divprune.plugins.module import Module, Value
from divprune.plugins.node import plan_launch
from divprune.plugins.ptx import read_ptx
from divprune.runtime.errors import BackendError

__all__ = ["Driver", "GreedyMaxMinKernel"]

_UNSUPPORTED_PTX_VERSION = 222


class Driver:
    """libcuda.

    Args:
        library: The library if it is loaded already; otherwise ``libcuda.so.1`` is.

    Raises:
        BackendError: if the machine has no NVIDIA driver.
    """

    def __init__(self, library: ctypes.CDLL | None = None) -> None:
        self._library = library or _load_library()

    def call(self, function: str, *arguments: object) -> None:
        """Call a driver function, with ctypes values as arguments.

        Raises:
            BackendError: if it returns an error.
        """
        code = getattr(self._library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            found = (text.value or b"unknown error").decode()
            found = f"{found} ({code})"
            if code == _UNSUPPORTED_PTX_VERSION:
                raise BackendError(
                    f"{function} failed: the NVIDIA driver is too old for our kernels",
                    expected="a driver for CUDA 12.5 or newer; nvidia-smi says which it is for",
                    found=found,
                    fix="update the NVIDIA driver, on a Jetson with JetPack 6.1 or later",
                )
            raise BackendError(f"{function} failed", found=found)

    def current_context(self) -> int | None:
        """The handle of the calling thread's CUDA context."""
        context = ctypes.c_void_p()
        self.call("cuCtxGetCurrent", ctypes.byref(context))
        return context.value


class GreedyMaxMinKernel:
    """The kernel, loaded into the CUDA context that is current.

    Args:
        driver: Of CUDA.
        method: How more than 5120 tokens are shared out; what the environment says by default.

    Raises:
        BackendError: if the driver refuses the PTX.
        OptionError: if the environment names no method.
        UnsupportedError: if the method needs another GPU.
    """

    def __init__(self, driver: Driver, method: Method | None = None) -> None:
        method = method or chosen_method()
        self._many = None if method == "one" else ManyBlocksKernel(driver, method)
        self._module = Module(driver, read_ptx())

    def launch(
        self,
        gram: int,
        seed: int,
        order: int,
        cover: int,
        *,
        num_tokens: int,
        num_kept: int,
        num_images: int = 1,
        stream: int = 0,
    ) -> None:
        """Enqueue the choice of K of N tokens.

        Args:
            gram: Device address of float32 [images, N, N].
            seed: Device address of int32 [images, K]; the first number of a row is read.
            order: Device address of int32 [images, K], which is written.
            cover: Device address of float32 [images, K], which is written.
            num_tokens: N.
            num_kept: K.
            num_images: How many.
            stream: The CUDA stream's handle; 0 is the default stream.
        """
        plan = plan_launch(num_tokens, num_kept)
        if self._many and num_tokens >= MANY_FROM:
            for image in range(num_images):
                rows = 4 * image * num_kept
                places = (gram + 4 * image * num_tokens**2, seed + rows, order + rows, cover + rows)
                self._many.launch(places, num_tokens, num_kept, stream)
            return
        values: list[Value] = [
            ctypes.c_uint64(gram),
            ctypes.c_uint64(seed),
            ctypes.c_int32(num_tokens),
            ctypes.c_int32(num_kept),
            ctypes.c_uint64(order),
            ctypes.c_uint64(cover),
        ]
        self._module.launch(plan.entry, num_images, plan.threads, values, stream)


def _load_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendError(
            "There is no NVIDIA driver on this machine",
            expected="libcuda.so.1",
            found=str(error),
            fix="run on a machine with an NVIDIA GPU and its driver",
        ) from None
