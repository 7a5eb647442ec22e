"""One graph of the decoder with its cache: the whole, or a half of it."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends.cuda.buffers import DeviceBuffer
from divprune.runtime.backends.tensorrt.cache import DeviceCache
from divprune.runtime.backends.tensorrt.live_slots import LiveSlots
from divprune.runtime.backends.tensorrt.profiles import choose_profile, llm_profiles
from divprune.runtime.directory.manifest import LIVE_SLOTS
from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from divprune.runtime.backends.tensorrt.engine import Engine, Session
    from divprune.runtime.directory.manifest import GraphSpec, Manifest, TensorSpec

__all__ = ["DecoderPart", "num_planes"]


class DecoderPart:
    """One decoder graph with its cache and output buffers.

    Args:
        session: What the engines share.
        manifest: Manifest of the engine directory.
        name: One of ``manifest.llm_graphs``.

    Attributes:
        filled: Cache slots that the sequence has filled.
    """

    def __init__(self, session: Session, manifest: Manifest, name: str) -> None:
        spec = manifest.graphs[name]
        keys = [tensor for tensor in spec.inputs if tensor.name.startswith("past_key_")]
        self._profiles = llm_profiles(manifest, name)
        self._rows = spec.inputs[0]
        self._axes = manifest.model.position_axes
        self._planes = _plane_names(spec)
        self._capacity = int(keys[0].shape[2])
        self._cache = DeviceCache(
            session.cuda,
            replace(manifest.kv_cache, num_layers=len(keys)),
            self._capacity,
            manifest.dialect,
            session.stream,
            first_layer=int(keys[0].name.rpartition("_")[2]),
        )
        self._outputs = {
            tensor.name: DeviceBuffer(session.cuda, _num_bytes(tensor, manifest.max_prefill_len))
            for tensor in spec.outputs
            if not tensor.name.startswith(("present_", "new_"))
        }
        self._live: LiveSlots | None = None
        if any(tensor.name == LIVE_SLOTS for tensor in spec.inputs):
            in_place = manifest.dialect != "delta"
            self._live = LiveSlots(session, self._capacity, in_place=in_place)
        self.filled = 0
        self._written = 0  # slots that may hold something, also of a run that failed

    @property
    def planes(self) -> tuple[int, ...]:
        """Which planes of the model this graph adds to its rows."""
        return tuple(map(_plane_index, self._planes))

    @property
    def last_keys(self) -> int:
        """Address of the key cache of the last layer in this graph."""
        return self._cache.last_keys

    def output(self, name: str) -> int:
        """Address of an output that does not belong to the cache."""
        return self._outputs[name].address

    def reset(self, rows: int = 0) -> None:
        """Start a new sequence behind ``rows`` rows of the one before."""
        if self._written and rows == 0:
            self._cache.clear(self._written)
            self._written = 0
        self.filled = rows

    def require_room(self, rows: int) -> None:
        """Check that the cache takes more rows.

        Raises:
            BackendError: if it does not.
        """
        if self.filled + rows > self._capacity:
            raise BackendError(
                "the KV cache is full",
                expected=f"at most {self._capacity} slots",
                found=f"{self.filled} filled and {rows} to write",
                fix="ask for fewer tokens, or export with a larger --max-seq-len",
            )

    def addresses(
        self, rows: int, embeds: int, positions: int, slot: int, planes: Sequence[int] = ()
    ) -> dict[str, int]:
        """Addresses of every input and output for a run of ``rows``.

        ``planes`` has that of each plane of the model, whether this graph adds it or not.
        """
        return {
            **{name: planes[_plane_index(name)] for name in self._planes},
            self._rows.name: embeds,
            "position_ids": positions,
            "write_indices": slot,
            **({} if self._live is None else {LIVE_SLOTS: self._live.address}),
            **{name: buffer.address for name, buffer in self._outputs.items()},
            **self._cache.addresses(rows),
        }

    @property
    def step_context(self) -> int:
        """Number of the execution context that the next decode step is recorded with.

        A recording goes on with the context that it was made of, so there is one for each length
        that attention looks at; 0 is for everything that is not recorded.
        """
        return 1 + self._live_length(1)

    def enqueue(
        self, engine: Engine, rows: int, addresses: dict[str, int], context: int = 0
    ) -> None:
        """Run the engine on ``rows`` at these addresses, in one of its contexts."""
        self._written = max(self._written, self.filled + rows)
        hidden = int(self._rows.shape[2])
        axes = (self._axes,) if self._axes > 1 else ()
        shapes: dict[str, tuple[int, ...]] = {
            self._rows.name: (1, rows, hidden),
            "position_ids": (*axes, 1, rows),
        }
        shapes |= dict.fromkeys(self._planes, (1, rows, hidden))
        if live := self._live_length(rows):
            shapes[LIVE_SLOTS] = (live,)
        engine.run(choose_profile(self._profiles, rows), shapes, addresses, context)

    def commit(self, rows: int) -> None:
        """Count the rows of the last run as filled, and write them where the graph did not."""
        self._cache.commit(self.filled, rows)
        self.filled += rows
        self._written = max(self._written, self.filled)  # a recorded step is not enqueued here

    def _live_length(self, rows: int) -> int:
        """Slots that attention looks at in the next run of ``rows``; 0 where that is fixed."""
        return 0 if self._live is None else self._live.length(self.filled, rows)


def num_planes(manifest: Manifest) -> int:
    """Planes that layers of the decoder add to rows."""
    names = [name for graph in manifest.llm_graphs for name in _plane_names(manifest.graphs[graph])]
    return max((_plane_index(name) + 1 for name in names), default=0)


def _plane_names(spec: GraphSpec) -> list[str]:
    """Inputs with rows that layers of a decoder graph add behind themselves."""
    return [tensor.name for tensor in spec.inputs if tensor.name.startswith("deepstack_")]


def _plane_index(name: str) -> int:
    """Which plane of the vision graph such an input takes."""
    return int(name.rpartition("_")[2])


def _num_bytes(tensor: TensorSpec, rows: int) -> int:
    """Of an output; the dimension that varies is the number of rows."""
    shape = [rows if isinstance(dim, str) else dim for dim in tensor.shape]
    return prod(shape) * np.dtype(tensor.dtype).itemsize
