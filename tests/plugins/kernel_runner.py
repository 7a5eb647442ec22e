"""Runs the kernel on arrays of the host, through any driver: a GPU's or the emulated one."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from divprune.plugins.driver import Driver, GreedyMaxMinKernel

__all__ = ["KernelRunner"]

Ints = npt.NDArray[np.int32]
_GUARD = 64  # integers before and behind the order that must stay as they were
_UNTOUCHED = -77


class KernelRunner:
    """The first device's primary context with the kernel loaded."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        device, context = ctypes.c_int(), ctypes.c_void_p()
        driver.call("cuInit", 0)
        driver.call("cuDeviceGet", ctypes.byref(device), 0)
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        driver.call("cuCtxSetCurrent", context)
        self._kernel = GreedyMaxMinKernel(driver)

    def order(self, gram: npt.NDArray[np.float32], seed: int, num_kept: int) -> list[int]:
        """The order for one image: gram [N, N]."""
        return self.orders(gram[np.newaxis], [seed], num_kept)[0].tolist()

    def orders(self, grams: npt.NDArray[np.float32], seeds: list[int], num_kept: int) -> Ints:
        """The orders [images, K] for similarities [images, N, N]."""
        return self.run(grams, seeds, num_kept)[0]

    def run(
        self, grams: npt.NDArray[np.float32], seeds: list[int], num_kept: int
    ) -> tuple[Ints, npt.NDArray[np.float32]]:
        """Orders and covers [images, K] for similarities [images, N, N]; no more is written."""
        num_images, num_tokens, _ = grams.shape
        first = np.full((num_images, num_kept), _UNTOUCHED, np.int32)
        first[:, 0] = seeds
        buffers = [
            np.full(num_images * num_kept + 2 * _GUARD, _UNTOUCHED, dtype)
            for dtype in (np.int32, np.float32)
        ]
        arrays = [np.ascontiguousarray(grams), first, *buffers]
        gram, seed, order, cover = addresses = [self._upload(array) for array in arrays]
        try:
            self._kernel.launch(
                gram,
                seed,
                order + _GUARD * buffers[0].itemsize,
                cover + _GUARD * buffers[1].itemsize,
                num_tokens=num_tokens,
                num_kept=num_kept,
                num_images=num_images,
            )
            self.driver.call("cuStreamSynchronize", None)
            self._download(order, buffers[0])
            self._download(cover, buffers[1])
        finally:
            for address in addresses:
                self.driver.call("cuMemFree_v2", ctypes.c_uint64(address))
        for buffer in buffers:
            guards = np.concatenate([buffer[:_GUARD], buffer[-_GUARD:]])
            assert (guards == _UNTOUCHED).all()
        orders, covers = (b[_GUARD:-_GUARD].reshape(num_images, num_kept) for b in buffers)
        return orders, covers

    def _upload(self, array: npt.NDArray[np.generic]) -> int:
        address = ctypes.c_uint64()
        size = ctypes.c_size_t(array.nbytes)
        self.driver.call("cuMemAlloc_v2", ctypes.byref(address), size)
        source = ctypes.c_void_p(array.ctypes.data)
        self.driver.call("cuMemcpyHtoD_v2", address, source, size)
        return address.value

    def _download(self, address: int, array: npt.NDArray[np.generic]) -> None:
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self.driver.call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), size)
