"""8-bit weights for ONNX Runtime: activations quantised as they come, products of integers.

    q, s, z = DynamicQuantizeLinear(x)                 uint8, one scale and zero point for all of x
    y = MatMulInteger(q, W, z, 0) · (s · scale of each output)

ONNX Runtime fuses the four nodes into its own kernel (MatMulIntegerToFloat).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune.export.graph_writer import GraphWriter
from divprune.export.quantization.matrix import QuantizedMatrix

__all__ = ["dynamic_int8_matmul"]


def dynamic_int8_matmul(
    op: GraphWriter, x: ir.Value, weight: QuantizedMatrix, dtype: ir.DataType, name: str
) -> ir.Value:
    """X [..., in] times the transposed weight: [..., out] of ``dtype``."""
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
    quantized, scale, zero = op.multi(
        "DynamicQuantizeLinear", x, num_outputs=3, name=f"{name}_quantized"
    )
    product = op("MatMulInteger", quantized, values, zero, name=name)
    product = op("Cast", product, to=ir.DataType.FLOAT, name=f"{name}_product")
    both = op("Mul", scale, scales, name=f"{name}_scales")
    y = op("Mul", product, both, name=f"{name}_scaled")
    return op("Cast", y, to=dtype, name=f"{name}_half") if half else y
