"""The KV cache of one part of the decoder: buffers that its graphs read and write in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from divprune.runtime.directory.manifest import GraphSpec, TensorSpec

__all__ = ["KVCache"]


class KVCache:
    """Key and value buffers [1, KV heads, S_max, head dim] of some layers.

    Attributes:
        values: OrtValue of each buffer, by ``key_i`` and ``value_i``.
        slots: The same memory as NumPy arrays; on a GPU only their shape and type count.
        capacity: S_max.
        filled: Slots that the sequence has filled.
    """

    def __init__(self, library: ModuleType, spec: GraphSpec, device: str) -> None:
        inputs = [tensor for tensor in spec.inputs if tensor.name.startswith("past_")]
        self.slots = {tensor.name.removeprefix("past_"): _allocate(tensor) for tensor in inputs}
        self.values = {
            name: library.OrtValue.ortvalue_from_numpy(slots, device, 0)
            for name, slots in self.slots.items()
        }
        self.capacity = int(inputs[0].shape[2])
        self.filled = 0

    @property
    def last_keys(self) -> Any:
        """OrtValue of the keys of the last layer."""
        return self.values[[name for name in self.values if name.startswith("key_")][-1]]

    def write(self, name: str, new: NDArray[np.floating]) -> None:
        """Put rows [1, KV heads, S, head dim] behind what is filled, on the CPU."""
        self.slots[name][:, :, self.filled : self.filled + new.shape[2]] = new

    def clear(self) -> None:
        """Write zeros over what the sequence has filled."""
        if self.filled:
            for name, buffer in self.values.items():
                buffer.update_inplace(np.zeros_like(self.slots[name]))


def _allocate(tensor: TensorSpec) -> NDArray[np.floating]:
    """A zeroed buffer.

    On the CPU an OrtValue shares numpy's memory, which the system hands out page by page: slots
    that are never written cost nothing.
    """
    return np.zeros([int(dim) for dim in tensor.shape], tensor.dtype)
