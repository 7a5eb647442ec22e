"""The engines of the LLM: prefill, and decode steps that become one launch of a CUDA graph.

What a step needs from the host (one embedding row, a position, a slot for each cache) is staged
in page-locked memory at fixed addresses and uploaded in one copy; what comes back is the best
token's index and score. All of it, with the engines between, is recorded as a CUDA graph on the
second step and launched as one from then on; there is a recording for each length of the cache that
attention looks at (``live_slots``).

The decoder is one engine, or a front and a back (``tensorrt_pruning`` has the prefill that
selects between them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends.cuda.buffers import ALIGNMENT, DeviceBuffer, HostBuffer, align
from divprune.runtime.backends.cuda.kernels import BEST_BYTES
from divprune.runtime.backends.tensorrt.decoder_part import DecoderPart, num_planes
from divprune.runtime.backends.tensorrt.step import RecordedStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends.cuda.kernels import Kernels
    from divprune.runtime.backends.tensorrt.engine import Engine, Session
    from divprune.runtime.backends.tensorrt.rows import DevicePrompt
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["Decoder", "DeviceLogits"]

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
    """Runs the engines of the decoder with their caches.

    Args:
        session: What the engines share.
        kernels: Reductions on the device.
        manifest: Manifest of the engine directory.
    """

    def __init__(self, session: Session, kernels: Kernels, manifest: Manifest) -> None:
        self._session, self._kernels = session, kernels
        cuda, self._vocab_size = session.cuda, manifest.model.vocab_size
        self._parts = [DecoderPart(session, manifest, name) for name in manifest.llm_graphs]
        hidden, dtype = manifest.model.hidden_size, np.dtype(manifest.kv_cache.dtype)
        # One row to embed, its position and a slot for each part, each at an aligned place.
        self._row_bytes = hidden * dtype.itemsize
        self._position_place = align(self._row_bytes)
        places = [self._position_place + ALIGNMENT * (i + 1) for i in range(len(self._parts))]
        self._slot_places = places
        self._step = DeviceBuffer(cuda, places[-1] + _INT64_BYTES)
        self._step_on_host = HostBuffer(cuda, self._step.num_bytes)
        self._row = self._step_on_host.array((hidden,), dtype)
        axes = manifest.model.position_axes
        self._position = self._step_on_host.array((axes,), np.int64, self._position_place)
        self._slots = [self._step_on_host.array((1,), np.int64, place) for place in places]
        longest = axes * manifest.max_prefill_len * _INT64_BYTES
        self._positions = DeviceBuffer(cuda, longest)
        self._positions_on_host = HostBuffer(cuda, longest)
        # A token of text has nothing in any plane, and nothing of it goes into a recording.
        self._no_plane = DeviceBuffer(cuda, self._row_bytes)
        cuda.zero(self._no_plane.address, self._row_bytes, session.stream)
        self._num_planes = num_planes(manifest)
        self._best = DeviceBuffer(cuda, BEST_BYTES)
        self._best_on_host = HostBuffer(cuda, BEST_BYTES)
        self._recorded: dict[tuple[int, ...], RecordedStep] = {}
        self.num_runs = 0

    def reset(self, rows: int = 0) -> int:
        """Start a new sequence behind ``rows`` rows of the one before; how many are there."""
        if rows > min(part.filled for part in self._parts):
            rows = 0
        for part in self._parts:
            part.reset(rows)
        return rows

    def prefill(
        self,
        engines: Sequence[Engine],
        prompt: DevicePrompt,
        position_ids: NDArray[np.int64],
        planes: Sequence[DevicePrompt] = (),
    ) -> DeviceLogits:
        """Append the rows of a prompt.

        Args:
            engines: Of the decoder's parts.
            prompt: The rows.
            position_ids: int64 [1, S] or [3, 1, S].
            planes: What layers add to the rows, one for each plane of the model.

        Raises:
            BackendError: if they do not fit into the caches.
        """
        rows, place = prompt.shape[1], prompt.address
        for part in self._parts:
            part.require_room(rows)
        self._stage(position_ids)
        added = [plane.address for plane in planes]
        for index in range(len(engines)):
            place = self._append(index, engines[index], rows, place, added)
        self._reduce()
        return self._finish()

    def decode(
        self, engines: Sequence[Engine], row: NDArray[np.floating], position: NDArray[np.int64]
    ) -> DeviceLogits:
        """Append one row [hidden] of text at its ``position``, int64 [axes].

        Raises:
            BackendError: if it does not fit into the caches.
        """
        for part, slot in zip(self._parts, self._slots, strict=True):
            part.require_room(1)
            slot[0] = part.filled
        self._row[:] = row
        self._position[:] = position
        addresses = self._step_addresses()
        contexts = tuple(part.step_context for part in self._parts)
        if contexts not in self._recorded:
            self._recorded[contexts] = RecordedStep(self._session, contexts)
        step = self._recorded[contexts]
        step.run(engines, addresses, lambda: self._enqueue_step(engines, addresses))
        for part in self._parts:
            part.commit(1)
        return self._finish()

    def download_logits(self) -> NDArray[np.float32]:
        """Scores [V] of the latest run."""
        out = np.empty(self._vocab_size, np.float32)
        session = self._session
        session.cuda.download(out.ctypes.data, self._logits, out.nbytes, session.stream)
        session.cuda.synchronize(session.stream)
        return out

    @property
    def _logits(self) -> int:
        return self._parts[-1].output("logits")

    def _stage(self, positions: NDArray[np.int64]) -> None:
        """Upload the positions of rows, as the graphs take them, and the slots they begin at.

        What was staged before must have arrived: the stream has been waited for since.
        """
        cuda, stream, host = self._session.cuda, self._session.stream, self._step_on_host
        staged = self._positions_on_host.array(positions.shape, np.int64)
        staged[:] = positions
        cuda.upload(self._positions.address, self._positions_on_host.address, staged.nbytes, stream)
        for part, slot in zip(self._parts, self._slots, strict=True):
            slot[0] = part.filled
        first = self._slot_places[0]
        cuda.upload(
            self._step.address + first, host.address + first, host.num_bytes - first, stream
        )

    def _append(
        self, index: int, engine: Engine, rows: int, embeds: int, planes: Sequence[int] = ()
    ) -> int:
        """Enqueue one part for staged rows that begin at ``embeds``; where its own begin."""
        part = self._parts[index]
        slot = self._step.address + self._slot_places[index]
        addresses = part.addresses(rows, embeds, self._positions.address, slot, planes)
        part.enqueue(engine, rows, addresses)
        part.commit(rows)
        return self._rows_behind(index)

    def _rows_behind(self, index: int) -> int:
        """Address of the rows that the part after ``index`` reads; of the logits at the end."""
        is_last = index == len(self._parts) - 1
        return self._logits if is_last else self._parts[index].output("hidden_states")

    def _step_addresses(self) -> list[dict[str, int]]:
        base, addresses = self._step.address, []
        embeds, position = base, base + self._position_place
        planes = [self._no_plane.address] * self._num_planes
        for index, part in enumerate(self._parts):
            slot = base + self._slot_places[index]
            addresses.append(part.addresses(1, embeds, position, slot, planes))
            embeds = self._rows_behind(index)
        return addresses

    def _enqueue_step(self, engines: Sequence[Engine], addresses: list[dict[str, int]]) -> None:
        session, step = self._session, self._step
        session.cuda.upload(
            step.address, self._step_on_host.address, step.num_bytes, session.stream
        )
        for part, engine, places in zip(self._parts, engines, addresses, strict=True):
            part.enqueue(engine, 1, places, part.step_context)
        self._reduce()

    def _reduce(self) -> None:
        session = self._session
        stream = int(session.stream)
        self._kernels.largest_logit(self._logits, self._vocab_size, self._best.address, stream)
        session.cuda.download(
            self._best_on_host.address, self._best.address, BEST_BYTES, session.stream
        )

    def _finish(self) -> DeviceLogits:
        self._session.cuda.synchronize(self._session.stream)
        self.num_runs += 1
        (best,) = self._best_on_host.array((1,), _BEST)
        return DeviceLogits(self, int(best["index"]), float(best["value"]))
