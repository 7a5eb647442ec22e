"""Quantise a weight matrix a few rows at a time: the float copy is never larger than a chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from divprune.export.checkpoint.quantization.matrix import Int4Numbers, Int8Numbers
from divprune.export.checkpoint.quantization.packing import pack_nibbles
from divprune.export.checkpoint.quantization.rounding import METHODS
from divprune.runtime.directory.quant_scheme import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from numpy.typing import NDArray

__all__ = ["CHUNK_VALUES", "quantize"]

CHUNK_VALUES = 1 << 18
"""Weights that are quantised at once: 1 MiB in float32, which stays in a core's cache."""


def quantize(
    weight: torch.Tensor, scheme: QuantScheme, method: str, scale_dtype: np.dtype
) -> Int4Numbers | Int8Numbers:
    """Quantise [out, in] of any float type.

    Args:
        weight: In the checkpoint's type; ``in`` a multiple of the scheme's block.
        scheme: What numbers to make.
        method: One of ``METHODS``; 8-bit weights are always rounded to nearest.
        scale_dtype: float16 or float32, of 4-bit scales.
    """
    if scheme.bits == 8:
        return _quantize_rows(weight)
    assert scheme.block is not None
    rows, inputs = weight.shape
    groups = inputs // scheme.block
    packed = np.empty((rows, inputs // 2), np.uint8)
    scales = np.empty((rows, groups), scale_dtype)
    zeros = None if scheme.symmetric else np.empty((rows, groups), np.uint8)
    for part, values in _chunks(weight):
        grouped = values.reshape(-1, groups, scheme.block)
        codes, scales[part], found = METHODS[method](grouped, scheme.symmetric, scale_dtype)
        packed[part] = pack_nibbles(codes.reshape(-1, inputs))
        if zeros is not None:
            assert found is not None
            zeros[part] = found
    return Int4Numbers(packed, scales, zeros)


def _quantize_rows(weight: torch.Tensor) -> Int8Numbers:
    """Signed bytes with one scale a row: the largest weight of the row is 127."""
    values = np.empty(tuple(weight.shape), np.int8)
    scales = np.empty(weight.shape[0], np.float32)
    for part, chunk in _chunks(weight):
        scale = np.abs(chunk).max(-1) / np.float32(127)
        scales[part] = np.where(scale > 0, scale, 1)
        values[part] = np.rint(chunk / scales[part][:, None]).astype(np.int8)
    return Int8Numbers(values, scales)


def _chunks(weight: torch.Tensor) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    rows = max(1, CHUNK_VALUES // weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        yield part, weight[part].float().numpy()
