"""Two 4-bit codes a byte, the first in the low half: the packing of ONNX and of MatMulNBits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack_nibbles", "unpack_nibbles"]


def pack_nibbles(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes 0..15 [..., n] to bytes [..., ceil(n / 2)]; an odd last one is paired with 0."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def unpack_nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes [..., m] to codes 0..15 [..., 2 m]."""
    codes = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    codes[..., 0::2] = packed & 15
    codes[..., 1::2] = packed >> 4
    return codes
