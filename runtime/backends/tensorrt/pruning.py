"""Prefill of a decoder that prunes visual tokens between two of its layers.

prompt ─► front ─► selection, once a picture ─► rows that stay ─► back ─► token

Hidden states and keys stay on the device; the orders of selection come to the host, where the
copies of the rows that stay are put together.
"""

from __future__ import annotations

from math import prod
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends import PrunedPrefill
from divprune.runtime.backends.cuda.buffers import ALIGNMENT, DeviceBuffer, HostBuffer, align
from divprune.runtime.backends.tensorrt.decoder import Decoder
from divprune.runtime.backends.tensorrt.rows import runs
from divprune.runtime.inputs.prompt import staying_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends.cuda.kernels import Kernels
    from divprune.runtime.backends.tensorrt.decoder_part import DecoderPart
    from divprune.runtime.backends.tensorrt.engine import Engine, Session
    from divprune.runtime.backends.tensorrt.rows import DevicePrompt
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["SplitDecoder"]

_INT64_BYTES = 8


class SplitDecoder(Decoder):
    """A decoder in two halves, with what stands between them.

    The arguments are those of ``Decoder``.
    """

    def __init__(self, session: Session, kernels: Kernels, manifest: Manifest) -> None:
        super().__init__(session, kernels, manifest)
        selector = manifest.selector
        self._num_image_tokens = selector.num_image_tokens
        removed = selector.num_image_tokens - selector.num_kept
        longest = max(1, manifest.max_prefill_len - removed)
        self._kept = DeviceBuffer(session.cuda, longest * self._row_bytes)
        has_selection = "llm_selection" in manifest.graphs
        self._selection = _Selection(session, manifest) if has_selection else None

    def prefill_pruned(
        self,
        engines: Sequence[Engine],
        selection: Engine | None,
        prompt: DevicePrompt,
        position_ids: NDArray[np.int64],
        visual_rows: Sequence[NDArray[np.int64]],
        num_kept: int,
    ) -> PrunedPrefill:
        """Start a sequence; ``Backend.prefill_pruned`` says what the arguments are.

        Raises:
            BackendError: if the rows do not fit into the caches.
        """
        cuda, stream, rows = self._session.cuda, self._session.stream, prompt.shape[1]
        removed = len(visual_rows) * (self._num_image_tokens - num_kept)
        front, back = self._parts
        front.require_room(rows)
        back.require_room(rows - removed)
        self._stage(position_ids)
        hidden = self._append(0, engines[0], rows, prompt.address)
        cuda.synchronize(stream)
        start = perf_counter()
        first_slots = [int(each[0]) for each in visual_rows]
        orders = self._select(selection, rows, first_slots, num_kept)
        stays = staying_rows(rows, visual_rows, orders)
        self._gather(hidden, stays)
        cuda.synchronize(stream)
        selection_ms = (perf_counter() - start) * 1000
        self._stage(position_ids[..., stays])
        self._append(1, engines[1], len(stays), self._kept.address)
        self._reduce()
        return PrunedPrefill(self._finish(), orders, selection_ms)

    def _select(
        self, engine: Engine | None, rows: int, first_slots: Sequence[int], num_kept: int
    ) -> tuple[NDArray[np.int64], ...]:
        """For each picture the tokens to keep, in the order chosen; on the host."""
        if engine is None or self._selection is None:
            return tuple(np.empty(0, np.int64) for _ in first_slots)
        orders = self._selection.run(engine, self._parts[0], rows, first_slots)
        return tuple(order[:num_kept] for order in orders)

    def _gather(self, hidden: int, stays: NDArray[np.int64]) -> None:
        """Copy the rows that stay next to one another."""
        target, size = self._kept.address, self._row_bytes
        for first, count in runs(stays):
            source = hidden + first * size
            self._session.cuda.copy(target, source, count * size, self._session.stream)
            target += count * size


class _Selection:
    """Feeds the selection engine from what the front has left on the device."""

    def __init__(self, session: Session, manifest: Manifest) -> None:
        spec, cuda = manifest.graphs["llm_selection"], session.cuda
        self._session = session
        self._names = [tensor.name for tensor in spec.inputs]
        # TensorRT wants aligned addresses, which rows in the middle of others need not have.
        self._rows = {
            tensor.name: DeviceBuffer(cuda, prod(map(int, tensor.shape)) * _itemsize(tensor.dtype))
            for tensor in spec.inputs
            if tensor.name in ("visual_states", "last_state")
        }
        self._row_bytes = manifest.model.hidden_size * _itemsize(manifest.kv_cache.dtype)
        pictures = max(1, manifest.max_prefill_len // manifest.selector.num_image_tokens)
        # The slots that are filled, then the first slot of each picture.
        self._numbers = DeviceBuffer(cuda, (pictures + 1) * ALIGNMENT)
        self._numbers_on_host = HostBuffer(cuda, self._numbers.num_bytes)
        self._num_kept = manifest.selector.num_kept
        self._order_bytes = align(self._num_kept * _INT64_BYTES)
        self._orders = DeviceBuffer(cuda, pictures * self._order_bytes)
        self._orders_on_host = HostBuffer(cuda, self._orders.num_bytes)

    def run(
        self, engine: Engine, front: DecoderPart, rows: int, first_slots: Sequence[int]
    ) -> list[NDArray[np.int64]]:
        """Orders [K] of the pictures whose tokens start at ``first_slots``, of ``rows`` rows."""
        cuda, stream = self._session.cuda, self._session.stream
        for place, number in enumerate((front.filled, *first_slots)):
            self._numbers_on_host.array((1,), np.int64, place * ALIGNMENT)[0] = number
        num_bytes = (len(first_slots) + 1) * ALIGNMENT
        cuda.upload(self._numbers.address, self._numbers_on_host.address, num_bytes, stream)
        for index, first in enumerate(first_slots):
            self._copy_rows(front, first, rows - 1)
            engine.run(0, {}, self._addresses(front, index))
        num_bytes = len(first_slots) * self._order_bytes
        cuda.download(self._orders_on_host.address, self._orders.address, num_bytes, stream)
        cuda.synchronize(stream)
        shape, host = (self._num_kept,), self._orders_on_host
        places = [index * self._order_bytes for index in range(len(first_slots))]
        return [host.array(shape, np.int64, place).copy() for place in places]

    def _copy_rows(self, front: DecoderPart, first: int, last: int) -> None:
        hidden = front.output("hidden_states")
        for name, row in (("visual_states", first), ("last_state", last)):
            if (buffer := self._rows.get(name)) is not None:
                source = hidden + row * self._row_bytes
                self._session.cuda.copy(
                    buffer.address, source, buffer.num_bytes, self._session.stream
                )

    def _addresses(self, front: DecoderPart, index: int) -> dict[str, int]:
        numbers = self._numbers.address
        places = {
            "num_slots": numbers,
            "first_slot": numbers + (index + 1) * ALIGNMENT,
            "keys": front.last_keys,
            **{name: buffer.address for name, buffer in self._rows.items()},
        }
        if "last_query" in self._names:
            places["last_query"] = front.output("last_query")
        inputs = {name: places[name] for name in self._names}
        return inputs | {"selection_order": self._orders.address + index * self._order_bytes}


def _itemsize(dtype: str) -> int:
    return np.dtype(dtype).itemsize
