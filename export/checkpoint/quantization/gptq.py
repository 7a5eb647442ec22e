"""The GPTQ format: eight inputs in an int32, first in the lowest bits.

    qweight int32 [in / 8, out]    qzeros int32 [groups, out / 8]    scales [groups, out]
    g_idx   int32 [in]             the group of each input

Version 1 stores zero points minus one, so that they reach from 1 to 16; version 2
(``checkpoint_format: gptq_v2``) stores them as they are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from divprune.export.checkpoint.quantization.packing import unpack_nibbles

__all__ = ["gptq_codes", "gptq_shape", "gptq_zeros"]


def gptq_shape(qweight: tuple[int, ...]) -> tuple[int, int]:
    """Outputs and inputs of a layer with ``qweight`` of this shape."""
    words, outputs = qweight
    return outputs, words * 8


def gptq_codes(qweight: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Codes packed by rows, uint8 [out, in / 2]: words of inputs are four such bytes already."""
    words, outputs = qweight.shape
    return np.ascontiguousarray(qweight.T).view(np.uint8).reshape(outputs, words * 4)


def gptq_zeros(qzeros: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Zero points as they are stored, uint8 [out, groups]."""
    nibbles = unpack_nibbles(np.ascontiguousarray(qzeros).view(np.uint8))
    return np.ascontiguousarray(nibbles.T)
