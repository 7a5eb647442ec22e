"""The LLM engine: prefill, and decode steps that become one launch of a CUDA graph.

What a step needs from the host (one embedding row, a position, a slot) is staged in page-locked
memory at fixed addresses and uploaded in one copy; what comes back is the best token's index
and score. All of it, with the engine between, is recorded as a CUDA graph on the second step
and launched as one from then on.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.backends.tensorrt_cache import DeviceCache
from divprune.runtime.device.buffers import DeviceBuffer, HostBuffer, align
from divprune.runtime.device.kernels import BEST_BYTES
from divprune.runtime.engine_build.profiles import choose_profile
from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from divprune.runtime.backends.tensorrt_engine import Engine, Session
    from divprune.runtime.backends.tensorrt_rows import DevicePrompt
    from divprune.runtime.device.kernels import Kernels
    from divprune.runtime.engine_build.profiles import Profile
    from divprune.runtime.manifest import Manifest

__all__ = ["Decoder", "DeviceLogits"]

log = logging.getLogger(__name__)

_INT64_BYTES = 8
_BEST = np.dtype([("index", np.int32), ("value", np.float32)])


class DeviceLogits:
    """Scores [V] of the latest run; the best is known, the others are copied when asked for."""

    def __init__(self, decoder: Decoder, index: int, value: float) -> None:
        self._decoder, self._run = decoder, decoder.num_runs
        self._index, self._value = index, value

    def best(self) -> tuple[int, float]:
        """The lowest index of the largest, and its value."""
        return self._index, self._value

    def numpy(self) -> NDArray[np.float32]:
        """All scores.

        Raises:
            RuntimeError: if the next run has written over them.
        """
        if self._run != self._decoder.num_runs:
            raise RuntimeError("the next step has written over these logits")
        return self._decoder.download_logits()


class Decoder:
    """Runs the LLM engine with its cache.

    Args:
        session: What the engines share.
        kernels: Reductions on the device.
        manifest: Of the engine directory.
        profiles: Of the engine.
    """

    def __init__(
        self,
        session: Session,
        kernels: Kernels,
        manifest: Manifest,
        profiles: tuple[Profile, ...],
    ) -> None:
        self._session, self._kernels, self._profiles = session, kernels, profiles
        cuda, stream = session.cuda, session.stream
        self._vocab_size = manifest.model.vocab_size
        hidden, dtype = manifest.model.hidden_size, np.dtype(manifest.kv_cache.dtype)
        self._cache = DeviceCache(
            cuda, manifest.kv_cache, manifest.max_seq_len, manifest.dialect, stream
        )
        # One row to embed, its position and its slot, each at an aligned place.
        self._places = (0, align(hidden * dtype.itemsize), align(hidden * dtype.itemsize) + 256)
        self._step = DeviceBuffer(cuda, self._places[2] + _INT64_BYTES)
        self._step_on_host = HostBuffer(cuda, self._step.num_bytes)
        row, position, slot = self._places
        self._row = self._step_on_host.array((hidden,), dtype, row)
        self._position = self._step_on_host.array((1,), np.int64, position)
        self._slot = self._step_on_host.array((1,), np.int64, slot)
        longest = manifest.max_prefill_len * _INT64_BYTES
        self._positions = DeviceBuffer(cuda, longest)
        self._positions_on_host = HostBuffer(cuda, longest)
        self._logits = DeviceBuffer(cuda, self._vocab_size * 4)
        self._best = DeviceBuffer(cuda, BEST_BYTES)
        self._best_on_host = HostBuffer(cuda, BEST_BYTES)
        self._recorded = _RecordedStep(session)
        self.num_runs = 0

    @property
    def cache_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._cache.num_bytes

    def clear(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    def prefill(
        self, engine: Engine, prompt: DevicePrompt, position_ids: NDArray[np.int64], filled: int
    ) -> DeviceLogits:
        """Append the rows of a prompt behind ``filled`` slots."""
        session, rows = self._session, prompt.shape[1]
        positions = self._positions_on_host.array((rows,), np.int64)
        positions[:] = position_ids[0]
        self._slot[0] = filled
        cuda, stream = session.cuda, session.stream
        cuda.upload(
            self._positions.address, self._positions_on_host.address, positions.nbytes, stream
        )
        place = self._places[2]
        cuda.upload(
            self._step.address + place, self._step_on_host.address + place, _INT64_BYTES, stream
        )
        shapes = {"inputs_embeds": prompt.shape, "position_ids": (1, rows)}
        addresses = self._addresses(prompt.address, self._positions.address, rows)
        engine.run(choose_profile(self._profiles, rows), shapes, addresses)
        self._reduce()
        return self._finish(filled, rows)

    def decode(
        self, engine: Engine, row: NDArray[np.floating], position: int, filled: int
    ) -> DeviceLogits:
        """Append one row [hidden] behind ``filled`` slots."""
        self._row[:] = row
        self._position[0], self._slot[0] = position, filled
        row_place, position_place, _ = self._places
        addresses = self._addresses(
            self._step.address + row_place, self._step.address + position_place, 1
        )
        self._recorded.run(engine, addresses, lambda: self._enqueue_step(engine, addresses))
        return self._finish(filled, 1)

    def download_logits(self) -> NDArray[np.float32]:
        """Scores [V] of the latest run."""
        out = np.empty(self._vocab_size, np.float32)
        session = self._session
        session.cuda.download(out.ctypes.data, self._logits.address, out.nbytes, session.stream)
        session.cuda.synchronize(session.stream)
        return out

    def _enqueue_step(self, engine: Engine, addresses: dict[str, int]) -> None:
        session, step = self._session, self._step
        session.cuda.upload(
            step.address, self._step_on_host.address, step.num_bytes, session.stream
        )
        shapes = {"inputs_embeds": (1, 1, len(self._row)), "position_ids": (1, 1)}
        engine.run(0, shapes, addresses)
        self._reduce()

    def _addresses(self, embeds: int, positions: int, rows: int) -> dict[str, int]:
        return {
            "inputs_embeds": embeds,
            "position_ids": positions,
            "write_indices": self._step.address + self._places[2],
            "logits": self._logits.address,
            **self._cache.addresses(rows),
        }

    def _reduce(self) -> None:
        session = self._session
        stream = int(session.stream)
        self._kernels.largest_logit(
            self._logits.address, self._vocab_size, self._best.address, stream
        )
        session.cuda.download(
            self._best_on_host.address, self._best.address, BEST_BYTES, session.stream
        )

    def _finish(self, filled: int, rows: int) -> DeviceLogits:
        self._cache.commit(filled, rows)
        self._session.cuda.synchronize(self._session.stream)
        self.num_runs += 1
        (best,) = self._best_on_host.array((1,), _BEST)
        return DeviceLogits(self, int(best["index"]), float(best["value"]))


class _RecordedStep:
    """Work that is the same every time: enqueued once, recorded the second time, launched after.

    TensorRT asks for one ordinary run before a recording. A recording holds addresses, so it
    is made anew when the engine, the scratch or another buffer is not the one it was.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._key: tuple[Any, ...] | None = None
        self._graph: Any = None
        self._impossible = False

    def run(self, engine: Engine, addresses: dict[str, int], enqueue: Callable[[], None]) -> None:
        """Enqueue the work, in whichever way is the fastest by now."""
        cuda, stream = self._session.cuda, self._session.stream
        if self._key != (engine, self._session.scratch.reserve(0, stream), addresses):
            self._forget()
            enqueue()
            # Taken after the run, which may have made the scratch larger and so moved it.
            self._key = (engine, self._session.scratch.reserve(0, stream), addresses)
            return
        if self._graph is None and not self._impossible and engine.is_capturable(0):
            self._record(enqueue)
        if self._graph is not None:
            cuda.launch_graph(self._graph, stream)
        else:
            enqueue()

    def _record(self, enqueue: Callable[[], None]) -> None:
        cuda, stream = self._session.cuda, self._session.stream
        cuda.begin_capture(stream)
        try:
            try:
                enqueue()
            finally:
                graph = cuda.end_capture(stream)
        except BackendError as error:
            log.warning("decode steps are not recorded as a CUDA graph: %s", error.what)
            self._impossible = True
            return
        self._graph = graph

    def _forget(self) -> None:
        if self._graph is not None:
            self._session.cuda.destroy_graph(self._graph)
        self._graph, self._key = None, None
