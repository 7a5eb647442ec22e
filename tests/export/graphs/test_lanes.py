"""The allow-list of each target: what its oldest runtime would refuse is refused here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from divprune.export.graphs.lanes import LANES, ParserLimits, check_graph
from divprune.export.graphs.writer import GraphWriter
from divprune.runtime.directory.manifest import TARGETS
from divprune.runtime.errors import UnsupportedError


def limits(target: str) -> ParserLimits:
    found = LANES[target].limits
    assert found is not None
    return found


def graph_of(
    op_type: str,
    *shapes: Sequence[int],
    opset: int = 17,
    domain: str = "",
    constants: Sequence[np.ndarray] = (),
    **attributes: Any,
) -> ir.Model:
    inputs = [ir.val(f"x{i}", ir.DataType.FLOAT, shape) for i, shape in enumerate(shapes)]
    op = GraphWriter()
    values = [*inputs, *(op.constant(array) for array in constants)]
    output = op(op_type, *values, domain=domain, name="it", **attributes)
    graph = ir.Graph(
        inputs,
        [output],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": opset},
        name="test",
    )
    return ir.Model(graph, ir_version=8)


def test_every_target_has_a_lane() -> None:
    assert tuple(LANES) == TARGETS


@pytest.mark.parametrize("target", TARGETS[1:])
def test_every_operator_of_a_list_is_one_of_onnx_within_the_opset(target: str) -> None:
    """A misspelt name would allow nothing, and one that is newer than the opset cannot be known."""
    for name in limits(target).operators:
        schema = onnx.defs.get_schema(name, max_inclusive_version=limits(target).max_opset)
        assert schema.since_version <= limits(target).max_opset


@pytest.mark.parametrize("name", ["TensorScatter", "Attention", "RotaryEmbedding", "Gelu", "Swish"])
def test_the_jetpack_6_graph_cannot_grow_a_newer_operator(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"(?s)TensorRT 10\.3.*it \({name}\)"):
        check_graph(graph_of(name, (1, 2)), limits("jetpack6"))


def test_a_newer_operator_inside_a_loop_is_found() -> None:
    body = graph_of("RMSNormalization", (1, 2)).graph
    outer = graph_of("Loop", (1, 2), body=body)
    with pytest.raises(UnsupportedError, match="RMSNormalization"):
        check_graph(outer, limits("jetpack6"))


@pytest.mark.parametrize(
    ("target", "opset", "fits"),
    [("jetpack6", 21, True), ("jetpack6", 22, False), ("tensorrt", 24, True)],
)
def test_an_opset_beyond_the_parser_is_refused(target: str, opset: int, fits: bool) -> None:
    model = graph_of("Add", (2,), (2,), opset=opset)
    if fits:
        check_graph(model, limits(target))
    else:
        with pytest.raises(UnsupportedError, match=f"opset {opset}"):
            check_graph(model, limits(target))


@pytest.mark.parametrize("target", TARGETS[1:])
def test_what_no_tensorrt_takes_is_refused(target: str) -> None:
    count = np.array([3840])
    unsigned = np.zeros(4, ir.DataType.UINT4.numpy())
    for model, problem in (
        (graph_of("Attention", *[(1, 1, 2, 8)] * 5), "it (Attention"),
        (graph_of("TopK", (5000,), constants=[count]), "TopK of 3840 or more"),
        (graph_of("DequantizeLinear", (4,), constants=[unsigned]), "of type UINT4"),
        (graph_of("GroupQueryAttention", (1,), domain="com.microsoft"), "com.microsoft::Group"),
    ):
        with pytest.raises(UnsupportedError) as caught:
            check_graph(model, limits(target))
        assert problem in str(caught.value.found)


def test_only_tensorrt_proper_hosts_the_plugin() -> None:
    model = graph_of("GreedyMaxMin", (1, 4, 4), (1,), domain="divprune")
    check_graph(model, limits("tensorrt"))
    check_graph(model, limits("jetpack6"))
    with pytest.raises(UnsupportedError, match="divprune::GreedyMaxMin"):
        check_graph(model, limits("tensorrt-rtx"))
