"""Decode steps as CUDA graphs: ``llm/decode.onnx``, recorded once and launched for every token.

Built, not yet run on a GPU. ``DIVPRUNE_CUDA_GRAPHS=1`` chooses it, ``0`` is the default.

ONNX Runtime records the first run of each thread and plays the recording after that: the same
addresses, the same shapes, and nothing on the host in between. So a step has inputs and outputs
that stay where they are; its row, its position and the slot it writes are copied into them. Prompts
go through the same session without a recording, so that the weights are on the device once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.plugins.driver import Driver
from divprune.plugins.environment import read_choice
from divprune.runtime.backends.cuda.kernels import LoadedKernels
from divprune.runtime.backends.cuda.stream import DeviceStream
from divprune.runtime.backends.onnxruntime.decoder import DecoderSession

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from divprune.runtime.backends.cuda.kernels import Kernels
    from divprune.runtime.backends.onnxruntime.cache import KVCache
    from divprune.runtime.directory.manifest import GraphSpec, TensorSpec

__all__ = ["VARIABLE", "RecordedDecoder", "Recorder", "StepLogits", "wants_recording"]

log = logging.getLogger(__name__)

VARIABLE = "DIVPRUNE_CUDA_GRAPHS"
_SKIP_RECORDING = ("gpu_graph_id", "-1")  # of a run
_BEST = np.dtype([("index", np.int32), ("value", np.float32)])


def wants_recording(environment: Mapping[str, str] = os.environ) -> bool:
    """What the environment says.

    Raises:
        OptionError: if it says something else.
    """
    return read_choice(VARIABLE, ("0", "1"), environment) == "1"


class Recorder:
    """Where decode steps are recorded.

    Args:
        device: ``cuda``, or ``cpu``: the same steps without a recording.
        open_driver: Opens the CUDA driver.

    Attributes:
        is_on: Whether steps are recorded; not after something refused that.
    """

    def __init__(self, device: str = "cuda", open_driver: Callable[[], Driver] = Driver) -> None:
        self.device, self.is_on = device, True
        self._open_driver = open_driver
        self._gpu: tuple[DeviceStream, Kernels] | None = None

    @property
    def provider_options(self) -> dict[str, str]:
        """What the session on CUDA is told.

        Raises:
            BackendError: if there is no GPU, or its driver refuses the kernels.
        """
        stream, _ = self._opened()
        return {"enable_cuda_graph": "1", "user_compute_stream": str(stream.handle)}

    def __str__(self) -> str:
        """As a part of the backend's name."""
        recorded = "recorded" if self.device == "cuda" else "at fixed addresses"
        return f"decode: {recorded if self.is_on else 'not recorded'}"

    def give_up(self, reason: object) -> None:
        """Say that steps run one by one from now on."""
        self.is_on = False
        log.warning("decode steps are not recorded as CUDA graphs, but run one by one: %s", reason)

    def best(self, logits: Any, best: Any) -> tuple[int, float]:
        """Index and value of the largest of ``logits``.

        Args:
            logits: OrtValue float32 [1, 1, V] on the device.
            best: OrtValue int32 [2] there, which is written.
        """
        stream, kernels = self._opened()
        stream.enter()
        count = logits.shape()[-1]
        kernels.largest_logit(logits.data_ptr(), count, best.data_ptr(), stream.handle)
        stream.synchronize()
        (found,) = best.numpy().view(_BEST)
        return int(found["index"]), float(found["value"])

    def _opened(self) -> tuple[DeviceStream, Kernels]:
        if self._gpu is None:
            driver = self._open_driver()
            self._gpu = DeviceStream(driver), LoadedKernels(driver)
        return self._gpu


class StepLogits:
    """Scores [V] of the latest recorded step, on the device."""

    def __init__(self, decoder: RecordedDecoder) -> None:
        self._decoder, self._step = decoder, decoder.num_steps

    def best(self) -> tuple[int, float]:
        """The lowest index of the largest, and its value.

        Raises:
            RuntimeError: if the next step has written over them.
        """
        self._require_latest()
        return self._decoder.best()

    def numpy(self) -> NDArray[np.float32]:
        """All scores; errors as ``best``."""
        self._require_latest()
        return self._decoder.download_logits()

    def _require_latest(self) -> None:
        if self._step != self._decoder.num_steps:
            raise RuntimeError("the next step has written over these logits")


class RecordedDecoder(DecoderSession):
    """A session of ``llm_decode``: prompts run as they come, rows of one token as a recording.

    Opening it runs a step, which ONNX Runtime records; slot 0 of the cache is written by it.

    Args:
        library: ONNX Runtime.
        session: Of the graph, opened with the recorder's options.
        spec: The graph, the length of the cache in numbers.
        cache: Which it reads and writes.
        recorder: Where steps are recorded.

    Attributes:
        num_steps: Recorded steps that ran.
    """

    def __init__(
        self,
        library: ModuleType,
        session: Any,
        spec: GraphSpec,
        cache: KVCache,
        recorder: Recorder,
    ) -> None:
        super().__init__(library, _Unrecorded(library, session), spec, cache)
        self._recorder, self.num_steps = recorder, 0
        self._recorded: Any = session
        self._step = session.io_binding()
        self._bind_cache(self._step, spec)
        self._values = {}
        for tensor in spec.inputs:
            if not tensor.name.startswith("past_"):
                self._values[tensor.name] = value = self._place(tensor)
                self._step.bind_ortvalue_input(tensor.name, value)
        (logits,) = self._outputs
        self._logits = self._place(logits)
        self._step.bind_ortvalue_output(logits.name, self._logits)
        self._best = self._ort_value.ortvalue_from_numpy(np.zeros(2, np.int32), recorder.device, 0)
        self._recorded.run_with_iobinding(self._step)

    def _place(self, tensor: TensorSpec) -> Any:
        """Room for a tensor of one row, at a place that does not change: zeros.

        The kernels read how many slots there are on the host. While a recording is launched
        again and again that cannot change: it is the whole cache, of which ``seqlens_k`` masks
        the rest.
        """
        shape = [dim if isinstance(dim, int) else 1 for dim in tensor.shape]
        values, device = np.zeros(shape, tensor.dtype), self._recorder.device
        if tensor.name == "total_sequence_length":
            values[:], device = self.cache.capacity, "cpu"
        return self._ort_value.ortvalue_from_numpy(values, device, 0)

    def step(self, row: NDArray[np.floating], position_ids: NDArray[np.int64]) -> StepLogits:
        """Append a row of text [1, 1, hidden] to the cache.

        Raises:
            BackendError: if the cache is full.
        """
        self._require_room(1)
        here = {
            self._rows_name: row,
            "position_ids": position_ids,
            "seqlens_k": np.array([self.cache.filled], np.int32),
        }
        for name, array in here.items():
            self._values[name].update_inplace(np.ascontiguousarray(array))
        self._recorded.run_with_iobinding(self._step)
        self.cache.filled += 1
        self.num_steps += 1
        return StepLogits(self)

    def best(self) -> tuple[int, float]:
        """Index and value of the largest logit of the latest step."""
        return self._recorder.best(self._logits, self._best)

    def download_logits(self) -> NDArray[np.float32]:
        """All logits [V] of the latest step."""
        logits: NDArray[np.float32] = self._logits.numpy()[0, 0].copy()
        return logits

    def close(self) -> None:
        """Give the session back; the cache stays."""
        self._session = self._binding = self._recorded = self._step = None


class _Unrecorded:
    """A session that records its runs, but not these."""

    def __init__(self, library: ModuleType, session: Any) -> None:
        self._session = session
        self._options = library.RunOptions()
        self._options.add_run_config_entry(*_SKIP_RECORDING)

    def io_binding(self) -> Any:
        """A binding of the session."""
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        """Run on what is bound."""
        self._session.run_with_iobinding(binding, self._options)
