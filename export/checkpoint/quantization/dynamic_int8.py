"""8-bit weights for ONNX Runtime: activations quantised as they come, products of integers.

    r = max |x| of each row
    q, s, z = DynamicQuantizeLinear(x / r)             uint8, one scale and zero point for all rows
    y = MatMulInteger(q, W, z, 0) · (s · scale of each output) · r

ONNX Runtime fuses the nodes from DynamicQuantizeLinear on into one kernel of its own
(DynamicQuantizeMatMul), which knows one scale for all rows. The division makes that a scale a row:
a single row of very large numbers, as language models have at their first token, would otherwise
leave the other rows a few of the 256 steps.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix
from divprune.export.graphs.writer import GraphWriter

__all__ = ["dynamic_int8_matmul"]


def dynamic_int8_matmul(
    op: GraphWriter,
    x: ir.Value,
    weight: QuantizedMatrix,
    dtype: ir.DataType,
    name: str,
    *,
    scale_rows: bool = True,
) -> ir.Value:
    """X [..., in] times the transposed weight: [..., out] of ``dtype``.

    Without ``scale_rows`` r is 1: one scale for all of x.
    """
    rows, inputs = weight.shape
    values = op.weight(
        f"{weight.name}.int8",
        ir.DataType.INT8,
        (inputs, rows),
        lambda: np.ascontiguousarray(weight.int8().values.T),
    )
    scales = op.weight(
        f"{weight.name}.scales", ir.DataType.FLOAT, (rows,), lambda: weight.int8().scales
    )
    half = dtype == ir.DataType.FLOAT16
    if half:
        x = op("Cast", x, to=ir.DataType.FLOAT, name=f"{name}_float")
    largest = _largest_of_rows(op, x) if scale_rows else None
    if largest is not None:
        x = op("Div", x, largest, name=f"{name}_unit_rows")
    quantized, scale, zero = op.multi(
        "DynamicQuantizeLinear", x, num_outputs=3, name=f"{name}_quantized"
    )
    product = op("MatMulInteger", quantized, values, zero, name=name)
    product = op("Cast", product, to=ir.DataType.FLOAT, name=f"{name}_product")
    both = op("Mul", scale, scales, name=f"{name}_scales")
    y = op("Mul", product, both, name=f"{name}_scaled")
    if largest is not None:
        y = op("Mul", y, largest, name=f"{name}_rows")
    return op("Cast", y, to=dtype, name=f"{name}_half") if half else y


def _largest_of_rows(op: GraphWriter, x: ir.Value) -> ir.Value:
    """Largest magnitude of each row, never 0; ONNX Runtime computes it once for one ``x``."""
    axis = op.constant(np.array([-1]), "row_axis")
    largest = op("ReduceMax", op("Abs", x), axis, keepdims=1)
    return op("Max", largest, op.constant(np.array(1e-30, np.float32), "smallest_row"))
