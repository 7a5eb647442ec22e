"""The selection by our kernel, on the device memory and the stream of ONNX Runtime's sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.plugins.driver import Driver, GreedyMaxMinKernel
from divprune.runtime.backends.cuda.stream import DeviceStream

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KernelSelection", "SelectionKernel"]


class SelectionKernel:
    """The kernel, loaded, and the stream that it shares with the sessions around it.

    Args:
        driver: Of CUDA.
        device: Of the sessions; ``cpu`` goes with a driver that runs kernels on the host.

    Raises:
        BackendError: if there is no GPU or the driver refuses the kernel.
    """

    def __init__(self, driver: Driver, device: str = "cuda") -> None:
        self.device = device
        self._stream = DeviceStream(driver)
        self._kernel = GreedyMaxMinKernel(driver)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.handle

    def synchronize(self) -> None:
        """Wait for what was launched."""
        self._stream.synchronize()

    def launch(self, gram: Any, first: Any, order: Any, cover: Any) -> None:
        """Enqueue the choice; OrtValues float32 [N, N], int32 [1, 1], int32 and float32 [1, K]."""
        self._stream.enter()  # in whichever thread this is
        self._kernel.launch(
            gram.data_ptr(),
            first.data_ptr(),
            order.data_ptr(),
            cover.data_ptr(),
            num_tokens=gram.shape()[0],
            num_kept=order.shape()[1],
            stream=self.stream,
        )


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
        """
        binding = self._similarities.io_binding()
        binding.bind_ortvalue_input("image_features", features)
        for name in ("similarities", "first_token"):
            binding.bind_output(name, self.device)
        self._similarities.run_with_iobinding(binding)
        order, cover = (
            self._ort_value.ortvalue_from_shape_and_type([1, num_kept], dtype, self.device)
            for dtype in (np.int32, np.float32)
        )
        gram, first = binding.get_outputs()
        self._kernel.launch(gram, first, order, cover)
        return order, cover
