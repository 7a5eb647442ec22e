from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from divprune.export.graphs.writer import GraphWriter
from divprune.export.vision.attention import fuse_attention

POSITIONS, HEADS, HEAD_DIM = 9, 3, 4
WIDTH = HEADS * HEAD_DIM


def attention(*, factors: tuple[float, float] = (0.7, 0.7), read_probabilities: bool = False):
    """A graph of the attention as torch spells it, behind something that makes q, k and v."""
    op = GraphWriter()
    x = ir.val("x", ir.DataType.FLOAT, (1, POSITIONS, WIDTH))
    rng = np.random.default_rng(0)
    split = op.constant(np.array([1, POSITIONS, HEADS, HEAD_DIM]), "split")
    heads = []
    for name in "qkv":
        weight = op.constant(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32), f"w_{name}")
        y = op("MatMul", x, weight, name=name)
        y.shape = ir.Shape((1, POSITIONS, WIDTH))
        heads.append(op("Transpose", op("Reshape", y, split), perm=[0, 2, 1, 3]))
    query, key, value = heads
    key = op("Transpose", key, perm=[0, 1, 3, 2])
    query, key = (
        op("Mul", part, op.constant(np.array(factor, np.float32), "factor"))
        for part, factor in zip((query, key), factors, strict=True)
    )
    probabilities = op("Softmax", op("MatMul", query, key), axis=-1)
    context = op("MatMul", probabilities, value)
    context.shape = ir.Shape((1, HEADS, POSITIONS, HEAD_DIM))
    joined = op.constant(np.array([1, POSITIONS, WIDTH]), "joined")
    y = op("Reshape", op("Transpose", context, perm=[0, 2, 1, 3]), joined)
    y.shape, y.dtype = ir.Shape((1, POSITIONS, WIDTH)), ir.DataType.FLOAT
    outputs = [op("Identity", y, name="y")]
    if read_probabilities:
        outputs.append(op("ReduceMax", probabilities, keepdims=0, name="largest"))
    for output in outputs:
        output.dtype = ir.DataType.FLOAT
    graph = ir.Graph(
        [x],
        outputs,
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": 20},
        name="attention",
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(1).standard_normal((1, POSITIONS, WIDTH)).astype(np.float32)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("factors", [(0.7, 0.7), (1.0, 0.25)])
def test_attention_becomes_one_operator_with_the_same_result(factors):
    model = attention(factors=factors)
    expected = run(model)
    assert fuse_attention(model.graph) == 1
    operators = Counter(node.op_type for node in model.graph)
    assert operators == {"MatMul": 3, "MultiHeadAttention": 1, "Identity": 1}
    assert set(model.graph.initializers) == {"w_q", "w_k", "w_v"}
    np.testing.assert_allclose(run(model), expected, rtol=1e-5, atol=1e-5)


def test_attention_whose_probabilities_are_read_stays_as_it_is():
    model = attention(read_probabilities=True)
    before = len(model.graph)
    assert fuse_attention(model.graph) == 0
    assert len(model.graph) == before
    assert "com.microsoft" not in model.graph.opset_imports


def test_a_softmax_that_is_no_attention_stays():
    op = GraphWriter()
    x = ir.val("x", ir.DataType.FLOAT, (2, 3))
    y = op("Softmax", x, axis=-1)
    graph = ir.Graph([x], [y], nodes=op.nodes, opset_imports={"": 20}, name="softmax")
    assert fuse_attention(graph) == 0
