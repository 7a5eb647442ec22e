"""4-bit weights for TensorRT: blocked DequantizeLinear before an ordinary MatMul.

    W = DequantizeLinear(codes - 8 as INT4 [in, out], scales [groups, out], axis 0)
    y = x W + groupsum(x) C,   C = scale · (8 - zero)  [groups, out]

TensorRT's 4-bit numbers are signed and have no zero point. What a zero point other than 8 would
have subtracted is the same for all weights of a group, so it comes back exactly as the sum of
the group's x times C. Symmetric weights have no second term.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from divprune.export.checkpoint.quantization.matrix import Int4Numbers, QuantizedMatrix
from divprune.export.checkpoint.quantization.packing import pack_nibbles, unpack_nibbles
from divprune.export.checkpoint.quantization.quantize import CHUNK_VALUES
from divprune.export.graphs.writer import GraphWriter

__all__ = ["dequantized_matmul"]

_SIGN = np.uint8(0x88)  # code - 8 in two's complement is the code with its highest bit flipped


def dequantized_matmul(
    op: GraphWriter, x: ir.Value, weight: QuantizedMatrix, dtype: ir.DataType, name: str
) -> ir.Value:
    """X [..., in] times the transposed weight: [..., out] of ``dtype``; needs opset 21."""
    rows, inputs = weight.shape
    groups = weight.groups
    codes = op.packed_weight(
        f"{weight.name}.int4",
        ir.DataType.INT4,
        (inputs, rows),
        lambda: _transposed(weight.int4().packed),
    )
    scales = op.weight(
        f"{weight.name}.scales",
        dtype,
        (groups, rows),
        lambda: np.ascontiguousarray(weight.int4().scales.T),
    )
    matrix = op(
        "DequantizeLinear",
        codes,
        scales,
        name=f"{name}_weight",
        axis=0,
        block_size=weight.scheme.block,
    )
    y = op("MatMul", x, matrix, name=name)
    if weight.scheme.symmetric:
        return y
    return op("Add", y, _correction(op, x, weight, dtype, name), name=f"{name}_corrected")


def _correction(
    op: GraphWriter, x: ir.Value, weight: QuantizedMatrix, dtype: ir.DataType, name: str
) -> ir.Value:
    shape = np.array([0, 0, weight.groups, weight.scheme.block], np.int64)
    grouped = op("Reshape", x, op.constant(shape, f"{name}_groups"), name=f"{name}_grouped")
    axis = op.constant(np.array([-1], np.int64), f"{name}_group_axis")
    sums = op("ReduceSum", grouped, axis, name=f"{name}_sums", keepdims=0)
    number = dtype.numpy()
    matrix = op.weight(
        f"{weight.name}.correction",
        dtype,
        (weight.groups, weight.shape[0]),
        lambda: np.ascontiguousarray(_offsets(weight.int4()).T.astype(number)),
    )
    return op("MatMul", sums, matrix, name=f"{name}_correction")


def _offsets(numbers: Int4Numbers) -> NDArray[np.float32]:
    """Scale · (8 - zero), [out, groups]."""
    assert numbers.zeros is not None
    steps: NDArray[np.float32] = np.subtract(8, numbers.zeros, dtype=np.float32)
    return numbers.scales.astype(np.float32) * steps


def _transposed(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes [out, in] packed by rows to signed ones [in, out], all packed in one row of bytes.

    A few inputs at a time (an even number, so that each part ends with a whole byte).
    """
    rows, half = packed.shape
    result = np.empty(rows * half, np.uint8)
    step = max(1, CHUNK_VALUES // (2 * rows))
    for start in range(0, half, step):
        columns = unpack_nibbles(packed[:, start : start + step] ^ _SIGN)
        part = pack_nibbles(np.ascontiguousarray(columns.T).reshape(-1))
        result[start * rows : start * rows + part.size] = part
    return result
