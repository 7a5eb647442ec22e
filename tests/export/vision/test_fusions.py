from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from divprune.export.vision.fusions import fuse_norms, fuse_rotary

BATCH, ROWS = 3, 5

ROTARY = """
<ir_version: 10, opset_import: ["" : 20]>
spelled (float[3, 5, 16] rows, float[{tables}, 5, 1, 4] cosine, float[{tables}, 5, 1, 4] sine)
    => (float[3, 5, 16] y)
    <int64[4] by_head = {{3, 5, 2, 8}}, int64[3] joined = {{3, 5, 16}}>
{{
    heads = Reshape (rows, by_head)
    {halves} = Split <axis = 3, num_outputs = 2> (heads)
    a = Mul (first, cosine)
    b = Mul (second, sine)
    c = Mul (second, cosine)
    d = Mul (first, sine)
    left = Sub (a, b)
    right = Add (c, d)
    turned = Concat <axis = -1> (left, right)
    y = Reshape (turned, joined)
}}
"""

NORM = """
<ir_version: 10, opset_import: ["" : 20]>
spelled (float[3, 5, 16] rows, float[16] weight) => (float[3, 5, 16] y)
    <float power = {{{power}}}, int64[1] axes = {{-1}}, float epsilon = {{0.000001}}>
{{
    square = Pow (rows, power)
    mean = ReduceMean <keepdims = 1> (square, axes)
    added = Add (mean, epsilon)
    root = Sqrt (added)
    inverse = Reciprocal (root)
    scaled = Mul (rows, inverse)
    y = Mul (weight, scaled)
}}
"""


def rotary(tables: int, halves: str = "first, second") -> ir.Model:
    """Rotary positions as torch spells them; tables of every row, or one that the batch shares."""
    return ir.from_onnx_text(ROTARY.format(tables=tables, halves=halves))


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("tables", [1, BATCH])
def test_rotary_positions_become_one_operator_with_the_same_result(tables: int) -> None:
    rng = np.random.default_rng(0)
    angles = rng.standard_normal((tables, ROWS, 1, 4)).astype(np.float32)
    rows = rng.standard_normal((BATCH, ROWS, 16)).astype(np.float32)
    feeds = {"rows": rows, "cosine": np.cos(angles), "sine": np.sin(angles)}
    model = rotary(tables)
    expected = run(model, **feeds)
    assert fuse_rotary(model) == 1
    found = operators(model)
    assert found["RotaryEmbedding"] == 1
    assert not found.keys() & {"Split", "Mul", "Sub", "Add", "Concat"}
    np.testing.assert_allclose(run(model, **feeds), expected, rtol=1e-6, atol=1e-6)


def test_halves_in_another_order_stay_spelled_out() -> None:
    model = rotary(1, halves="second, first")
    before = operators(model)
    assert fuse_rotary(model) == 0
    assert operators(model) == before


def test_rms_norm_becomes_one_operator_with_the_same_result() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((BATCH, ROWS, 16)).astype(np.float32)
    weight = np.linspace(0.5, 2.0, 16, dtype=np.float32)
    model = ir.from_onnx_text(NORM.format(power=2))
    expected = run(model, rows=rows, weight=weight)
    assert fuse_norms(model) == 1
    assert operators(model) == {"SimplifiedLayerNormalization": 1}
    found = run(model, rows=rows, weight=weight)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_a_norm_of_another_power_stays_spelled_out() -> None:
    model = ir.from_onnx_text(NORM.format(power=4))
    assert fuse_norms(model) == 0
    assert "Pow" in operators(model)
