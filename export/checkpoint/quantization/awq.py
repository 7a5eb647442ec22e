"""The AWQ format ("gemm", as AutoAWQ writes it): eight outputs in an int32.

    qweight int32 [in, out / 8]    qzeros int32 [groups, out / 8]    scales [groups, out]

The nibble at bits 4 i of a word belongs to output ``_ORDER[i]`` of the word's eight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from divprune.export.checkpoint.quantization.packing import pack_nibbles, unpack_nibbles

__all__ = ["awq_codes", "awq_shape", "awq_zeros"]

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_CHUNK_VALUES = 1 << 20


def awq_shape(qweight: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a layer with ``qweight`` of this shape."""
    inputs, words = qweight
    return words * 8, inputs


def awq_codes(qweight: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Codes packed by rows, uint8 [out, in / 2]; a few outputs at a time."""
    inputs, words = qweight.shape
    packed = np.empty((words * 8, inputs // 2), np.uint8)
    step = max(1, _CHUNK_VALUES // (8 * inputs))
    for start in range(0, words, step):
        codes = _outputs(qweight[:, start : start + step])
        packed[8 * start : 8 * (start + step)] = pack_nibbles(codes.T)
    return packed


def awq_zeros(qzeros: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Zero points uint8 [out, groups], 0..15."""
    return np.ascontiguousarray(_outputs(qzeros).T)


def _outputs(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Int32 [n, words] to nibbles uint8 [n, 8 words], in the order of the outputs."""
    nibbles = unpack_nibbles(np.ascontiguousarray(words).view(np.uint8))
    stored = nibbles.reshape(words.shape[0], -1, 8)
    ordered = np.empty_like(stored)
    ordered[..., _ORDER] = stored
    return ordered.reshape(words.shape[0], -1)
