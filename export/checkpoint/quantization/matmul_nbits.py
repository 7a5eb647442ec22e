"""4-bit weights for ONNX Runtime: com.microsoft MatMulNBits, in bytes as it reads them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix
from divprune.export.checkpoint.quantization.packing import pack_nibbles
from divprune.export.graphs.writer import GraphWriter

__all__ = ["ACCURACY_LEVEL", "matmul_nbits"]

ACCURACY_LEVEL = 4
"""4 rounds activations to 8 bits by groups and multiplies integers: faster than 0, which keeps
them in float, and off by about 0.6 % in one layer of random numbers."""


def matmul_nbits(
    op: GraphWriter,
    x: ir.Value,
    weight: QuantizedMatrix,
    dtype: ir.DataType,
    name: str,
    accuracy_level: int = ACCURACY_LEVEL,
) -> ir.Value:
    """X [..., in] times the transposed weight: [..., out] of ``dtype``."""
    rows, inputs = weight.shape
    block, groups = weight.scheme.block, weight.groups
    assert block is not None
    packed = op.weight(
        f"{weight.name}.int4",
        ir.DataType.UINT8,
        (rows, groups, block // 2),
        lambda: weight.int4().packed.reshape(rows, groups, block // 2),
    )
    scales = op.weight(f"{weight.name}.scales", dtype, (rows, groups), lambda: weight.int4().scales)
    return op(
        "MatMulNBits",
        x,
        packed,
        scales,
        *_zero_points(op, weight, dtype),
        domain="com.microsoft",
        name=name,
        K=inputs,
        N=rows,
        bits=4,
        block_size=block,
        accuracy_level=accuracy_level,
    )


def _zero_points(op: GraphWriter, weight: QuantizedMatrix, dtype: ir.DataType) -> list[ir.Value]:
    """None for 8 everywhere; packed like the codes; floats where one of them is 16.

    ONNX Runtime multiplies weights with float zero points in float, whatever the accuracy
    level: right, but slow.
    """
    rows, groups = weight.shape[0], weight.groups
    name = f"{weight.name}.zeros"
    if weight.scheme.symmetric:
        return []
    if weight.max_zero > 15:
        number = dtype.numpy()
        return [op.weight(name, dtype, (rows, groups), lambda: _zeros(weight).astype(number))]
    shape = (rows, (groups + 1) // 2)
    return [op.weight(name, ir.DataType.UINT8, shape, lambda: pack_nibbles(_zeros(weight)))]


def _zeros(weight: QuantizedMatrix) -> NDArray[np.uint8]:
    zeros = weight.int4().zeros
    assert zeros is not None
    return zeros
