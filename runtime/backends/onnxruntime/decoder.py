"""One graph of the decoder with a KV cache bound in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.directory.manifest import LIVE_SLOTS
from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import ModuleType

    from numpy.typing import NDArray

    from divprune.runtime.backends.onnxruntime.cache import KVCache
    from divprune.runtime.directory.manifest import GraphSpec, TensorSpec

__all__ = ["DecoderSession"]


class DecoderSession:
    """A session over a KV cache, whose buffers are its inputs and outputs at once.

    A step writes S slots and copies nothing; ``delta`` graphs have outputs of their own for
    these slots (``new_key_i``, ``new_value_i``), which are written here, on the CPU only.
    """

    def __init__(self, library: ModuleType, session: Any, spec: GraphSpec, cache: KVCache) -> None:
        self.cache = cache
        self._ort_value = library.OrtValue
        self._session = session
        self._rows_name = spec.inputs[0].name
        self._planes = [t.name for t in spec.inputs if t.name.startswith("deepstack_")]
        self._takes_live_slots = any(tensor.name == LIVE_SLOTS for tensor in spec.inputs)
        self._outputs = [t for t in spec.outputs if not t.name.startswith("present_")]
        self._takes_lengths = any(tensor.name == "seqlens_k" for tensor in spec.inputs)
        self._binding = session.io_binding()
        self._bind_cache(self._binding, spec)

    def _bind_cache(self, binding: Any, spec: GraphSpec) -> None:
        present = {tensor.name for tensor in spec.outputs}
        for name, buffer in self.cache.values.items():
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            if f"present_{name}" in present:
                binding.bind_ortvalue_output(f"present_{name}", buffer)

    def run(
        self,
        rows: NDArray[np.floating],
        position_ids: NDArray[np.int64],
        planes: Sequence[NDArray[np.floating]] = (),
    ) -> dict[str, NDArray[Any]]:
        """Append S rows [1, S, hidden] to the cache; what comes out beside it, by name.

        ``planes`` are rows for the inputs ``deepstack_i`` of the graph; zeros where there are none.

        Raises:
            BackendError: if S rows do not fit into what is left of the cache.
        """
        cache, count = self.cache, rows.shape[1]
        self._require_room(count)
        inputs = {  # alive until the run is over: the binding does not own their memory
            self._rows_name: self._on_host(rows),
            "position_ids": self._on_host(position_ids),
            **{name: self._on_host(value) for name, value in self._slots(count)},
            **{name: self._on_host(plane) for name, plane in self._plane_rows(rows, planes)},
        }
        if self._takes_live_slots:
            inputs[LIVE_SLOTS] = self._on_host(np.arange(cache.filled + count))
        for tensor, value in inputs.items():
            self._binding.bind_ortvalue_input(tensor, value)
        outputs = {tensor.name: _empty(tensor, count) for tensor in self._outputs}
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, self._on_host(array))
        self._session.run_with_iobinding(self._binding)
        for name in cache.values:
            if (new := outputs.pop(f"new_{name}", None)) is not None:
                cache.write(name, new)
        cache.filled += count
        return outputs

    def _require_room(self, count: int) -> None:
        cache = self.cache
        if cache.filled + count > cache.capacity:
            raise BackendError(
                "the KV cache is full",
                expected=f"at most {cache.capacity} slots",
                found=f"{cache.filled} filled and {count} to write",
                fix="ask for fewer tokens, or take a larger --max-seq-len",
            )

    def _slots(self, count: int) -> Iterator[tuple[str, NDArray[Any]]]:
        """Which slots of the cache are written, as the graph takes it."""
        filled = self.cache.filled
        if self._takes_lengths:
            yield "seqlens_k", np.array([filled + count - 1], np.int32)
            yield "total_sequence_length", np.array([filled + count], np.int32)
            yield "last_row", np.array([count - 1], np.int64)
        else:
            yield "write_indices", np.array([filled], np.int64)

    def _plane_rows(
        self, rows: NDArray[np.floating], planes: Sequence[NDArray[np.floating]]
    ) -> Iterator[tuple[str, NDArray[np.floating]]]:
        for name in self._planes:
            index = int(name.rpartition("_")[2])
            yield name, planes[index] if planes else np.zeros_like(rows)

    def run_beside(self, session: Any, feeds: Mapping[str, Any], output: str) -> NDArray[Any]:
        """Run another graph on those of ``feeds`` that it has inputs for; OrtValues stay put."""
        values = {
            tensor.name: self._as_ort_value(feeds[tensor.name]) for tensor in session.get_inputs()
        }
        (result,) = session.run_with_ort_values([output], values)
        array: NDArray[Any] = result.numpy()
        return array

    def _as_ort_value(self, value: Any) -> Any:
        return self._on_host(value) if isinstance(value, np.ndarray) else value

    def _on_host(self, array: NDArray[Any]) -> Any:
        """An OrtValue over the memory of ``array``; bound to a GPU it is copied there."""
        return self._ort_value.ortvalue_from_numpy(np.ascontiguousarray(array), "cpu", 0)


def _empty(tensor: TensorSpec, count: int) -> NDArray[Any]:
    """Room for an output of ``count`` rows."""
    shape = [dim if isinstance(dim, int) else count for dim in tensor.shape]
    return np.empty(shape, tensor.dtype)
