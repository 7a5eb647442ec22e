"""Prefill of a decoder that prunes visual tokens between two of its layers.

prompt ─► front ─► selection, once a picture ─► rows that stay ─► back ─► token

Hidden states and keys stay on the device; the orders of selection come to the host, where the
copies of the rows that stay are put together. So are those of what layers behind the selection add
to their rows (DeepStack).
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends import PrunedPrefill
from divprune.runtime.backends.cuda.buffers import DeviceBuffer, HostBuffer
from divprune.runtime.backends.tensorrt.decoder import Decoder
from divprune.runtime.backends.tensorrt.profiles import varying_dims
from divprune.runtime.backends.tensorrt.rows import runs
from divprune.runtime.backends.tensorrt.vision import num_bytes
from divprune.runtime.directory.keep import exported_count
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
_COPIED = ("visual_states", "last_state", "visual_slots", "num_slots", "kept_slots")


class SplitDecoder(Decoder):
    """A decoder in two halves, with what stands between them.

    The arguments are those of ``Decoder``.
    """

    def __init__(self, session: Session, kernels: Kernels, manifest: Manifest) -> None:
        super().__init__(session, kernels, manifest)
        longest = _longest_behind(manifest) * self._row_bytes
        self._kept = DeviceBuffer(session.cuda, longest)
        back = self._parts[1]
        self._kept_planes = {plane: DeviceBuffer(session.cuda, longest) for plane in back.planes}
        has_selection = "llm_selection" in manifest.graphs
        self._selection = _Selection(session, manifest) if has_selection else None

    def prefill_pruned(
        self,
        engines: Sequence[Engine],
        selection: Engine | None,
        prompt: DevicePrompt,
        position_ids: NDArray[np.int64],
        visual_rows: Sequence[NDArray[np.int64]],
        num_kept: Sequence[int],
        planes: Sequence[DevicePrompt] = (),
    ) -> PrunedPrefill:
        """Start a sequence; ``Backend.prefill_pruned`` says what the arguments are.

        Raises:
            BackendError: if the rows do not fit into the caches.
        """
        cuda, stream, rows = self._session.cuda, self._session.stream, prompt.shape[1]
        removed = sum(map(len, visual_rows)) - sum(num_kept)
        front, back = self._parts
        front.require_room(rows)
        back.require_room(rows - removed)
        self._stage(position_ids)
        added = [plane.address for plane in planes]
        hidden = self._append(0, engines[0], rows, prompt.address, added)
        cuda.synchronize(stream)
        start = perf_counter()
        orders = self._select(selection, rows, visual_rows, num_kept)
        stays = staying_rows(rows, visual_rows, orders)
        self._gather(self._kept, hidden, stays)
        for plane, buffer in self._kept_planes.items():
            self._gather(buffer, added[plane], stays)
            added[plane] = buffer.address
        cuda.synchronize(stream)
        selection_ms = (perf_counter() - start) * 1000
        self._stage(position_ids[..., stays])
        self._append(1, engines[1], len(stays), self._kept.address, added)
        self._reduce()
        return PrunedPrefill(self._finish(), orders, selection_ms)

    def _select(
        self,
        engine: Engine | None,
        rows: int,
        visual_rows: Sequence[NDArray[np.int64]],
        num_kept: Sequence[int],
    ) -> tuple[NDArray[np.int64], ...]:
        """For each picture the tokens to keep, in the order chosen; on the host."""
        if engine is None or self._selection is None:
            return tuple(np.empty(0, np.int64) for _ in visual_rows)
        front, selection = self._parts[0], self._selection
        return tuple(
            selection.run(engine, front, rows, visual)[:count]
            for visual, count in zip(visual_rows, num_kept, strict=True)
        )

    def _gather(self, kept: DeviceBuffer, source: int, stays: NDArray[np.int64]) -> None:
        """Copy the rows that stay next to one another."""
        _copy_rows(self._session, kept.address, source, stays, self._row_bytes)


class _Selection:
    """Feeds the selection engine from what the front has left on the device."""

    def __init__(self, session: Session, manifest: Manifest) -> None:
        self._session, self._manifest, cuda = session, manifest, session.cuda
        spec = manifest.graphs["llm_selection"]
        dims = varying_dims(manifest, "llm_selection")
        largest = {name: dim.maximum for name, dim in dims.items()}
        self._inputs = {tensor.name: tensor for tensor in spec.inputs}
        # TensorRT wants aligned addresses, which rows in the middle of others need not have.
        self._copies = {
            name: DeviceBuffer(cuda, num_bytes(tensor, largest))
            for name, tensor in self._inputs.items()
            if name in _COPIED
        }
        self._row_bytes = manifest.model.hidden_size * np.dtype(manifest.kv_cache.dtype).itemsize
        most = largest.get("tokens", manifest.selector.num_image_tokens)
        # The slots that are filled, then those of the picture.
        self._numbers = HostBuffer(cuda, (1 + most) * _INT64_BYTES)
        (order,) = spec.outputs
        self._order = DeviceBuffer(cuda, num_bytes(order, largest))
        self._order_on_host = HostBuffer(cuda, self._order.num_bytes)

    def run(
        self, engine: Engine, front: DecoderPart, rows: int, visual_rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The order [K] of the picture whose tokens are ``visual_rows`` of a prompt of ``rows``."""
        cuda, stream = self._session.cuda, self._session.stream
        self._copy(front, rows, visual_rows)
        count = exported_count(self._manifest, len(visual_rows))
        engine.run(0, self._shapes(len(visual_rows), count), self._addresses(front))
        size = count * _INT64_BYTES
        cuda.download(self._order_on_host.address, self._order.address, size, stream)
        cuda.synchronize(stream)  # behind it the next picture may use the same memory
        return self._order_on_host.array((count,), np.int64).copy()

    def _copy(self, front: DecoderPart, rows: int, visual_rows: NDArray[np.int64]) -> None:
        hidden, last = front.output("hidden_states"), np.array([rows - 1])
        for name, wanted in (("visual_states", visual_rows), ("last_state", last)):
            if (buffer := self._copies.get(name)) is not None:
                _copy_rows(self._session, buffer.address, hidden, wanted, self._row_bytes)
        numbers = self._numbers.array((1 + len(visual_rows),), np.int64)
        numbers[0], numbers[1:] = front.filled, visual_rows
        for name, first, count in (("num_slots", 0, 1), ("visual_slots", 1, len(visual_rows))):
            if (buffer := self._copies.get(name)) is not None:
                source = self._numbers.address + first * _INT64_BYTES
                size = count * _INT64_BYTES
                self._session.cuda.upload(buffer.address, source, size, self._session.stream)

    def _shapes(self, tokens: int, kept: int) -> dict[str, tuple[int, ...]]:
        """Of the inputs that vary."""
        sizes = {"tokens": tokens, "kept": kept}
        return {
            name: tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)
            for name, tensor in self._inputs.items()
            if any(isinstance(dim, str) for dim in tensor.shape)
        }

    def _addresses(self, front: DecoderPart) -> dict[str, int]:
        places = {name: buffer.address for name, buffer in self._copies.items()}
        if "keys" in self._inputs:
            places["keys"] = front.last_keys
        if "last_query" in self._inputs:
            places["last_query"] = front.output("last_query")
        return places | {"selection_order": self._order.address}


def _longest_behind(manifest: Manifest) -> int:
    """Most rows of a prompt behind the selection; a small picture loses next to nothing."""
    selector = manifest.selector
    if manifest.has_variable_tokens:
        return manifest.max_prefill_len
    return max(1, manifest.max_prefill_len - (selector.num_image_tokens - selector.num_kept))


def _copy_rows(
    session: Session, target: int, source: int, rows: NDArray[np.int64], row_bytes: int
) -> None:
    """Copy some rows from ``source`` to ``target``, next to one another, on the device."""
    for first, count in runs(rows):
        size = count * row_bytes
        session.cuda.copy(target, source + first * row_bytes, size, session.stream)
        target += size
