"""How much of the KV cache attention looks at: the input ``live_slots`` of the decoder's graphs.

Its values are 0, 1, 2 ... and its length is what counts. A prompt looks at what is filled and no
further. Decode steps are recorded as CUDA graphs, which have one shape each: there the length
grows in doubling steps, and where looking at a part would save less than copying it out of the
cache costs, it is the whole cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends.cuda.buffers import DeviceBuffer

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.engine import Session

__all__ = ["SHORTEST_DECODE", "LiveSlots", "decode_length"]

SHORTEST_DECODE = 256


def decode_length(needed: int, capacity: int) -> int:
    """Slots that a decode step looks at, of ``capacity``, if it needs the first ``needed``."""
    length = SHORTEST_DECODE
    while length < needed:
        length *= 2
    return length if 3 * length <= capacity else capacity


class LiveSlots:
    """The input on the device: the longest there is, of which a run uses the beginning.

    Args:
        session: What the engines share.
        capacity: Slots of the cache.
        in_place: Whether the graph writes new rows into the cache before it looks at it.
    """

    def __init__(self, session: Session, capacity: int, *, in_place: bool) -> None:
        self._capacity, self._in_place = capacity, in_place
        numbers = np.arange(capacity)
        self._buffer = DeviceBuffer(session.cuda, numbers.nbytes)
        session.cuda.upload(
            self._buffer.address, numbers.ctypes.data, numbers.nbytes, session.stream
        )
        session.cuda.synchronize(session.stream)

    @property
    def address(self) -> int:
        """Of int64 [capacity]."""
        return self._buffer.address

    def length(self, filled: int, rows: int) -> int:
        """For a run of ``rows`` behind ``filled`` slots."""
        needed = filled + rows if self._in_place else max(1, filled)
        return decode_length(needed, self._capacity) if rows == 1 else needed
