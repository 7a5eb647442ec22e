"""Runs the kernels for many tokens on arrays of the host, through any driver."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from divprune.plugins.driver import Driver
from divprune.plugins.feature_selection import FeatureSelection, plan_workspace
from divprune.plugins.many_blocks import BlocksLaunch, ManyBlocksKernel, Together
from divprune.plugins.module import compute_capability
from tests.plugins.kernel_runner import KernelRunner

__all__ = ["ManyRunner"]

Floats = npt.NDArray[np.float32]
Found = tuple[list[int], Floats]
_GUARD = 64  # numbers before and behind the results that must stay as they were
_UNTOUCHED = -77


class ManyRunner(KernelRunner):
    """The first device's primary context with all kernels loaded."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        has_clusters = compute_capability(driver) >= (9, 0)
        self.methods: tuple[Together, ...] = ("grid", "cluster") if has_clusters else ("grid",)
        self._greedy = {each: ManyBlocksKernel(driver, each) for each in self.methods}
        self._exact = {each: FeatureSelection(driver, each) for each in self.methods}

    def choose(
        self, gram: Floats, seed: int, num_kept: int, together: Together, plan: BlocksLaunch
    ) -> Found:
        """Order and cover by several blocks, for similarities [N, N]."""
        inputs = [
            self._upload(np.ascontiguousarray(gram)),
            self._upload(np.array([seed], np.int32)),
        ]
        outputs = _outputs(num_kept)
        places = [self._upload(output) for output in outputs]
        written = [place + 4 * _GUARD for place in places]
        self._greedy[together].launch((*inputs, *written), len(gram), num_kept, plan=plan)
        return self._results(outputs, places, inputs)

    def select(
        self,
        features: npt.NDArray[np.float16],
        num_kept: int,
        together: Together,
        plan: BlocksLaunch,
    ) -> Found:
        """Order and cover for features [N, width]."""
        space = plan_workspace(len(features), num_kept)
        inputs = [self._upload(features), self._upload(np.full(space.num_bytes, 0xAB, np.uint8))]
        outputs = _outputs(num_kept)
        places = [self._upload(output) for output in outputs]
        order, cover = (place + 4 * _GUARD for place in places)
        num_tokens, width = features.shape
        self._exact[together].launch(
            inputs[0],
            order,
            cover,
            inputs[1],
            num_tokens=num_tokens,
            width=width,
            num_kept=num_kept,
            plan=plan,
        )
        self.gram = np.empty((num_tokens, num_tokens), np.float32)
        self.driver.call("cuStreamSynchronize", None)
        self._download(inputs[1] + space.gram, self.gram)
        return self._results(outputs, places, inputs)

    def _results(
        self,
        outputs: list[npt.NDArray[np.generic]],
        places: list[int],
        inputs: list[int],
    ) -> Found:
        self.driver.call("cuStreamSynchronize", None)
        for output, place in zip(outputs, places, strict=True):
            self._download(place, output)
            guards = np.concatenate([output[:_GUARD], output[-_GUARD:]])
            assert (guards == _UNTOUCHED).all()
        for address in [*places, *inputs]:
            self.driver.call("cuMemFree_v2", ctypes.c_uint64(address))
        order, cover = (output[_GUARD:-_GUARD] for output in outputs)
        return order.tolist(), cover.astype(np.float32)


def _outputs(num_kept: int) -> list[npt.NDArray[np.generic]]:
    size = num_kept + 2 * _GUARD
    return [np.full(size, _UNTOUCHED, dtype) for dtype in (np.int32, np.float32)]
