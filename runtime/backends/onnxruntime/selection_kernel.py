"""The selection by our kernels, on the device memory and the stream of ONNX Runtime's sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.plugins.driver import Driver, GreedyMaxMinKernel
from divprune.plugins.environment import read_choice
from divprune.plugins.feature_selection import SIMILARITIES, FeatureSelection, plan_workspace
from divprune.plugins.many_blocks import chosen_method
from divprune.runtime.backends.cuda.stream import DeviceStream

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KernelSelection", "SelectionKernel"]

_ALIGNMENT = 256


class SelectionKernel:
    """The kernels, loaded, and the stream that they share with the sessions around them.

    Args:
        driver: Of CUDA.
        device: Of the sessions; ``cpu`` goes with a driver that runs kernels on the host.

    Attributes:
        device: The same.
        from_features: The choice from float16 features, where the environment asks for it.

    Raises:
        BackendError: if there is no GPU or the driver refuses a kernel.
        OptionError: if the environment asks for what there is not.
        UnsupportedError: if it asks for what the GPU has not.
    """

    def __init__(self, driver: Driver, device: str = "cuda") -> None:
        self.device = device
        self._stream = DeviceStream(driver)
        self._from_similarities = GreedyMaxMinKernel(driver)
        self.from_features: FeatureSelection | None = None
        if read_choice(SIMILARITIES, ("float32", "float16")) == "float16":
            method = chosen_method()
            self.from_features = FeatureSelection(driver, "grid" if method == "one" else method)

    @property
    def title(self) -> str:
        """For the backend's name."""
        return "kernel" if self.from_features is None else "kernel from float16"

    @property
    def provider_options(self) -> dict[str, str]:
        """What a session on CUDA is told to compute on the stream."""
        return {"user_compute_stream": str(self._stream.handle)}

    def synchronize(self) -> None:
        """Wait for what was launched."""
        self._stream.synchronize()

    def choose(self, gram: Any, first: Any, order: Any, cover: Any) -> None:
        """Enqueue the choice; OrtValues float32 [N, N], int32 [1, 1], int32 and float32 [1, K]."""
        self._stream.enter()  # in whichever thread this is
        self._from_similarities.launch(
            gram.data_ptr(),
            first.data_ptr(),
            order.data_ptr(),
            cover.data_ptr(),
            num_tokens=gram.shape()[0],
            num_kept=order.shape()[1],
            stream=self._stream.handle,
        )

    def choose_from_features(self, features: Any, order: Any, cover: Any, workspace: Any) -> None:
        """The same from float16 [N, width]; ``workspace`` is uint8, as `workspace_bytes` says."""
        assert self.from_features is not None
        self._stream.enter()
        num_tokens, width = features.shape()
        self.from_features.launch(
            features.data_ptr(),
            order.data_ptr(),
            cover.data_ptr(),
            -(-workspace.data_ptr() // _ALIGNMENT) * _ALIGNMENT,
            num_tokens=num_tokens,
            width=width,
            num_kept=order.shape()[1],
            stream=self._stream.handle,
        )

    def workspace_bytes(self, num_tokens: int, num_kept: int) -> int:
        """What ``choose_from_features`` needs, wherever it begins."""
        return plan_workspace(num_tokens, num_kept).num_bytes + _ALIGNMENT


class KernelSelection:
    """Chooses K of N tokens whose features are on the device.

    Args:
        library: ONNX Runtime.
        similarities: Session of ``vision/similarities.onnx``.
        kernel: On whose stream the session runs.
    """

    def __init__(self, library: ModuleType, similarities: Any, kernel: SelectionKernel) -> None:
        self._ort_value, self._similarities, self._kernel = library.OrtValue, similarities, kernel
        self.device = kernel.device

    def choose(self, features: Any, num_kept: int) -> tuple[Any, Any]:
        """Order int32 [1, K] and cover float32 [1, K] of features [N, hidden]; all OrtValues.

        Both are being written when this returns: what reads them has to be on the same stream.
        What the kernel still reads by then is free memory only for what comes behind it there.
        """
        order, cover = self._room([1, num_kept], np.int32), self._room([1, num_kept], np.float32)
        if self._kernel.from_features is not None:
            size = self._kernel.workspace_bytes(features.shape()[0], num_kept)
            workspace = self._room([size], np.uint8)
            self._kernel.choose_from_features(features, order, cover, workspace)
        else:
            binding = self._similarities.io_binding()
            binding.bind_ortvalue_input("image_features", features)
            for name in ("similarities", "first_token"):
                binding.bind_output(name, self.device)
            self._similarities.run_with_iobinding(binding)
            gram, first = binding.get_outputs()
            self._kernel.choose(gram, first, order, cover)
        return order, cover

    def _room(self, shape: list[int], dtype: type[np.generic]) -> Any:
        return self._ort_value.ortvalue_from_shape_and_type(shape, dtype, self.device)
