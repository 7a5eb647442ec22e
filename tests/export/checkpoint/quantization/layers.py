"""One linear layer as a graph, run by ONNX Runtime; and random quantised matrices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from divprune.export.checkpoint.quantization.matrix import Int4Numbers, QuantizedMatrix
from divprune.export.checkpoint.quantization.packing import pack_nibbles
from divprune.export.graphs.writer import GraphWriter
from divprune.runtime.directory.quant_scheme import QuantScheme

DTYPES = {"fp16": ir.DataType.FLOAT16, "fp32": ir.DataType.FLOAT}


def random_matrix(
    shape: tuple[int, int], block: int, *, zeros: int | None = None, dtype: str = "fp32"
) -> QuantizedMatrix:
    """Random codes and scales; zero points 0..``zeros``, all of which occur, or none."""
    rng = np.random.default_rng(3)
    rows, inputs = shape
    groups = inputs // block
    number = DTYPES[dtype].numpy()
    points = None
    if zeros is not None:
        points = np.resize(np.arange(zeros + 1, dtype=np.uint8), rows * groups)
        points = rng.permutation(points).reshape(rows, groups)
    numbers = Int4Numbers(
        pack_nibbles(rng.integers(0, 16, shape).astype(np.uint8)),
        rng.uniform(0.01, 0.1, (rows, groups)).astype(number),
        points,
    )
    scheme = QuantScheme(4, block, zeros is None)
    return QuantizedMatrix("weight", shape, scheme, lambda: numbers, max_zero=zeros or 15)


def layer_model(
    write: Callable[[GraphWriter, ir.Value], ir.Value], inputs: int, dtype: str, opset: int = 21
) -> onnx.ModelProto:
    """What ``write`` makes of an input ``x`` [1, S, inputs], as a model."""
    op = GraphWriter()
    x = ir.val("x", dtype=DTYPES[dtype], shape=(1, "rows", inputs))
    y = write(op, x)
    y.dtype = DTYPES[dtype]
    graph = ir.Graph(
        [x],
        [y],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": opset, "com.microsoft": 1},
        name="layer",
    )
    return ir.serde.serialize_model(ir.Model(graph, ir_version=10))


def run_layer(
    write: Callable[[GraphWriter, ir.Value], ir.Value],
    x: np.ndarray,
    dtype: str,
    opset: int = 21,
) -> np.ndarray:
    """Run what ``write`` makes of ``x`` [1, S, in], in float wherever the graph leaves a choice."""
    model = layer_model(write, x.shape[-1], dtype, opset)
    options = onnxruntime.SessionOptions()
    # Blocked DequantizeLinear becomes MatMulNBits, by default of accuracy level 4.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"x": x.astype(DTYPES[dtype].numpy())})
    return np.asarray(result, np.float32)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """2-norm of the difference over that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
