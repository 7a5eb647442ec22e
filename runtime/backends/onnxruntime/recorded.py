"""Decode steps as CUDA graphs: ``llm/decode.onnx``, recorded once and launched for every token.

Built, not yet run on a GPU. ``DIVPRUNE_CUDA_GRAPHS=1`` chooses it, ``0`` is the default; with
``all`` prompts are recorded too, padded to one of a few lengths.

ONNX Runtime records the first run of each thread and plays the recording after that: the same
addresses, the same shapes, and nothing on the host in between. So a step has inputs and outputs
that stay where they are; its row, its position and the slot it writes are copied into them. What is
not recorded goes through the same session, so that the weights are on the device once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

__all__ = [
    "PROMPT_LENGTHS",
    "VARIABLE",
    "RecordedDecoder",
    "Recorder",
    "StepLogits",
    "wanted_recorder",
]

log = logging.getLogger(__name__)

VARIABLE = "DIVPRUNE_CUDA_GRAPHS"
PROMPT_LENGTHS = (64, 128, 256, 512)
"""Rows that a recorded prompt is padded to."""
_RECORDING, _NONE = "gpu_graph_id", "-1"  # option of a run, and its value where nothing is recorded
_BEST = np.dtype([("index", np.int32), ("value", np.float32)])


def wanted_recorder(environment: Mapping[str, str] = os.environ) -> Recorder | None:
    """What the environment asks for, on CUDA.

    Raises:
        OptionError: if it says something that there is not.
    """
    choice = read_choice(VARIABLE, ("0", "1", "all"), environment)
    return None if choice == "0" else Recorder(lengths=PROMPT_LENGTHS if choice == "all" else ())


class Recorder:
    """Where decode steps are recorded.

    Args:
        device: ``cuda``, or ``cpu``: the same steps without a recording.
        open_driver: Opens the CUDA driver.
        lengths: Rows to which prompts are padded that are recorded too, ascending.

    Attributes:
        device: The same.
        lengths: The same.
        is_on: Whether steps are recorded; not after something refused that.
    """

    def __init__(
        self,
        device: str = "cuda",
        open_driver: Callable[[], Driver] = Driver,
        lengths: Sequence[int] = (),
    ) -> None:
        self.device, self.is_on, self.lengths = device, True, tuple(lengths)
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
        what = "prefill and decode" if self.lengths else "decode"
        return f"{what}: {recorded if self.is_on else 'not recorded'}"

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
    """A session of ``llm_decode``: rows of one of a few numbers are played back from a recording.

    Opening it runs a step, which ONNX Runtime records; slot 0 of the cache is written by it.

    Args:
        library: ONNX Runtime.
        session: Of the graph, opened with the recorder's options.
        spec: The graph, the length of the cache in numbers.
        cache: Which it reads and writes.
        recorder: Where steps are recorded.

    Attributes:
        num_steps: Recorded runs so far.
    """

    def __init__(
        self,
        library: ModuleType,
        session: Any,
        spec: GraphSpec,
        cache: KVCache,
        recorder: Recorder,
    ) -> None:
        super().__init__(library, _WithOption(library, session, _NONE), spec, cache)
        self._library, self._spec, self._recorder = library, spec, recorder
        self._recorded: Any = session
        self.num_steps = 0
        (logits,) = self._outputs
        self._logits = self._place(logits, 1)
        self._best = self._ort_value.ortvalue_from_numpy(np.zeros(2, np.int32), recorder.device, 0)
        self._recordings = {1: self._record(1)}
        self._recordings[1].run()

    def length_for(self, count: int, *, has_planes: bool) -> int | None:
        """How many rows the recording has that takes ``count`` rows; None where none does."""
        if count == 1:
            return None if has_planes else 1
        room = self.cache.capacity - self.cache.filled
        return next((n for n in self._recorder.lengths if count <= n <= room), None)

    def play(
        self,
        length: int,
        rows: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]] = (),
    ) -> StepLogits:
        """Append S rows [1, S, hidden] to the cache by a recording of as many or more.

        Rows of padding come behind them. Attention is causal, so that no row sees them, and what
        they leave in the cache is written over before it counts.

        Raises:
            BackendError: if the cache is full.
        """
        count, filled = rows.shape[1], self.cache.filled
        self._require_room(count)
        if length not in self._recordings:
            self._recordings[length] = self._record(length)
        recording = self._recordings[length]
        recording.write(self._rows_name, _padded(rows, length, 1))
        recording.write("position_ids", _padded(position_ids, length, -1))
        recording.write("seqlens_k", np.array([filled + length - 1], np.int32))
        recording.write("last_row", np.array([count - 1], np.int64))
        if length > 1:
            for name, plane in self._plane_rows(rows, planes):
                recording.write(name, _padded(plane, length, 1))
        recording.run()
        self.cache.filled += count
        self.num_steps += 1
        return StepLogits(self)

    def best(self) -> tuple[int, float]:
        """Index and value of the largest logit of the latest run."""
        return self._recorder.best(self._logits, self._best)

    def download_logits(self) -> NDArray[np.float32]:
        """All logits [V] of the latest run."""
        logits: NDArray[np.float32] = self._logits.numpy()[0, 0].copy()
        return logits

    def close(self) -> None:
        """Give the session back; the cache stays."""
        self._recordings.clear()
        self._session = self._binding = self._recorded = None

    def _record(self, length: int) -> _Recording:
        """A recording of so many rows, to be made by its first run."""
        session = _WithOption(self._library, self._recorded, str(length))
        binding, values = session.io_binding(), {}
        self._bind_cache(binding, self._spec)
        for tensor in self._spec.inputs:
            if not tensor.name.startswith("past_"):
                values[tensor.name] = value = self._place(tensor, length)
                binding.bind_ortvalue_input(tensor.name, value)
        binding.bind_ortvalue_output(self._outputs[0].name, self._logits)
        return _Recording(session, binding, values)

    def _place(self, tensor: TensorSpec, length: int) -> Any:
        """Room for a tensor of so many rows, at a place that does not change: zeros.

        The kernels read how many slots there are on the host. While a recording is launched
        again and again that cannot change: it is the whole cache, of which ``seqlens_k`` masks
        the rest.
        """
        shape = [dim if isinstance(dim, int) else length for dim in tensor.shape]
        values, device = np.zeros(shape, tensor.dtype), self._recorder.device
        if tensor.name == "total_sequence_length":
            values[:], device = self.cache.capacity, "cpu"
        return self._ort_value.ortvalue_from_numpy(values, device, 0)


@dataclass(frozen=True)
class _Recording:
    """Inputs and outputs of a number of rows at places that do not change.

    Attributes:
        session: Whose runs are this recording.
        binding: Of all inputs and outputs.
        values: OrtValues of the inputs, by name, without the cache.
    """

    session: _WithOption
    binding: Any
    values: Mapping[str, Any]

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Copy an input to its place."""
        self.values[name].update_inplace(np.ascontiguousarray(array))

    def run(self) -> None:
        """Run on what stands there; ONNX Runtime records the first time."""
        self.session.run_with_iobinding(self.binding)


def _padded(rows: NDArray[Any], length: int, axis: int) -> NDArray[Any]:
    """The same with zeros behind them."""
    width = [(0, 0)] * rows.ndim
    width[axis] = (0, length - rows.shape[axis])
    return np.pad(rows, width)


class _WithOption:
    """A session whose runs are the recording of a number, or of none."""

    def __init__(self, library: ModuleType, session: Any, recording: str) -> None:
        self._session = session
        self._options = library.RunOptions()
        self._options.add_run_config_entry(_RECORDING, recording)

    def io_binding(self) -> Any:
        """A binding of the session."""
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        """Run on what is bound."""
        self._session.run_with_iobinding(binding, self._options)
