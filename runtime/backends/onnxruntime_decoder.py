"""One graph of the decoder with its part of the KV cache, bound in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from numpy.typing import NDArray

    from divprune.runtime.manifest import GraphSpec, TensorSpec

__all__ = ["DecoderSession"]


class DecoderSession:
    """A session and its cache buffers, which are inputs and outputs at once.

    A step writes S slots and copies nothing; ``delta`` graphs have outputs of their own for
    these slots (``new_key_i``, ``new_value_i``), which are written here, on the CPU only.

    Attributes:
        filled: Cache slots that the sequence has filled.
    """

    def __init__(
        self,
        library: ModuleType,
        session: Any,
        spec: GraphSpec,
        *,
        device: str,
        reads_masked_slots: bool,
    ) -> None:
        self.filled = 0
        self._reads_masked_slots = reads_masked_slots
        self._ort_value = library.OrtValue
        self._session = session
        self._rows_name = spec.inputs[0].name
        caches = [tensor for tensor in spec.inputs if tensor.name.startswith("past_")]
        self._capacity = int(caches[0].shape[2])
        self._outputs = [t for t in spec.outputs if not t.name.startswith("present_")]
        self._slots = {tensor.name.removeprefix("past_"): _allocate(tensor) for tensor in caches}
        self._cache = {
            tensor: library.OrtValue.ortvalue_from_numpy(slots, device, 0)
            for tensor, slots in self._slots.items()
        }
        present = {tensor.name for tensor in spec.outputs}
        self._last_keys = [name for name in self._cache if name.startswith("key_")][-1]
        self._binding = session.io_binding()
        for tensor, buffer in self._cache.items():
            self._binding.bind_ortvalue_input(f"past_{tensor}", buffer)
            if f"present_{tensor}" in present:
                self._binding.bind_ortvalue_output(f"present_{tensor}", buffer)

    def reset(self) -> None:
        """Start a new sequence.

        Where masked slots are multiplied by zero instead of being left out, a NaN in one would
        spoil every sequence that follows: there they become zeros.
        """
        if self._reads_masked_slots and self.filled:
            for tensor, buffer in self._cache.items():
                buffer.update_inplace(np.zeros_like(self._slots[tensor]))
        self.filled = 0

    @property
    def last_keys(self) -> Any:
        """OrtValue of the key cache of the last layer in this graph."""
        return self._cache[self._last_keys]

    def run(
        self, rows: NDArray[np.floating], position_ids: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """Append S rows [1, S, hidden] to the cache; what comes out beside it, by name.

        Raises:
            BackendError: if S rows do not fit into what is left of the cache.
        """
        count = rows.shape[1]
        if self.filled + count > self._capacity:
            raise BackendError(
                "the KV cache is full",
                expected=f"at most {self._capacity} slots",
                found=f"{self.filled} filled and {count} to write",
                fix="ask for fewer tokens, or export with a larger --max-seq-len",
            )
        inputs = {  # alive until the run is over: the binding does not own their memory
            self._rows_name: self._on_host(rows),
            "position_ids": self._on_host(position_ids),
            "write_indices": self._on_host(np.array([self.filled], np.int64)),
        }
        for tensor, value in inputs.items():
            self._binding.bind_ortvalue_input(tensor, value)
        outputs = {tensor.name: _empty(tensor, count) for tensor in self._outputs}
        for name, array in outputs.items():
            self._binding.bind_ortvalue_output(name, self._on_host(array))
        self._session.run_with_iobinding(self._binding)
        for tensor, slots in self._slots.items():
            if (new := outputs.pop(f"new_{tensor}", None)) is not None:
                slots[:, :, self.filled : self.filled + count] = new
        self.filled += count
        return outputs

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


def _allocate(tensor: TensorSpec) -> NDArray[Any]:
    """A zeroed buffer.

    On the CPU an OrtValue shares numpy's memory, which the system hands out page by page: slots
    that are never written cost nothing.
    """
    return np.zeros([int(dim) for dim in tensor.shape], tensor.dtype)


def _empty(tensor: TensorSpec, count: int) -> NDArray[Any]:
    """Room for an output of ``count`` rows."""
    shape = [dim if isinstance(dim, int) else count for dim in tensor.shape]
    return np.empty(shape, tensor.dtype)
