"""What DivPrune's subgraph is made of, and what it does that NumPy need not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from divprune.export.selection.divprune import DivPrune
from tests.export.selection.graphs import (
    features_model,
    graph_greedy,
    graph_select,
    session,
)


def _all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                nodes += _all_nodes(attribute.g)
    return nodes


def _loop_body(model: onnx.ModelProto) -> onnx.GraphProto:
    (loop,) = [node for node in model.graph.node if node.op_type == "Loop"]
    body: onnx.GraphProto = loop.attribute[0].g
    return body


def test_graph_passes_the_full_checker() -> None:
    onnx.checker.check_model(features_model(20, 8, 5), full_check=True)


def test_every_name_is_unique_across_graph_and_loop_body() -> None:
    model = features_model(20, 8, 5)
    names = [output for node in _all_nodes(model.graph) for output in node.output]
    names += [value.name for value in model.graph.initializer]
    names += [value.name for value in _loop_body(model).input]
    assert len(names) == len(set(names))


def test_loop_state_has_rank_two_as_tensorrt_wants() -> None:
    body = _loop_body(features_model(20, 8, 5))
    states = [*body.input[2:], *body.output[1:]]
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in states]
    assert shapes == [[1, 20], [1, 1], [1, 20], [1, 1], [1, 1], [1, 1]]


def test_no_op_with_an_unspecified_tie_rule_is_used() -> None:
    used = {node.op_type for node in _all_nodes(features_model(20, 8, 5).graph)}
    assert not used & {"ArgMin", "ArgMax", "TopK"}


def test_constants_grow_with_n_and_not_with_its_square() -> None:
    sizes = [int(np.prod(tensor.dims)) for tensor in features_model(300, 8, 30).graph.initializer]
    assert max(sizes) == 300


def test_opset_17_needs_only_the_axes_of_two_nodes_as_attributes() -> None:
    model = features_model(20, 8, 5)
    axes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    lowered = [n for n in model.graph.node if n.op_type in {"ReduceL2", "ReduceMax"}]
    for node in lowered:
        node.attribute.append(onnx.helper.make_attribute("axes", axes[node.input.pop()]))
    model.opset_import[0].version = 17
    model.ir_version = 8
    onnx.checker.check_model(model, full_check=True)
    features = np.random.default_rng(5).standard_normal((20, 8)).astype(np.float32)
    order = session(model).run(None, {"features": features})[0]
    assert len(lowered) == 2
    assert order.tolist() == graph_select(features, 5).tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_graph_ends_in_range_when_features_are_not_finite(bad: float, everywhere: bool) -> None:
    features = np.random.default_rng(1).standard_normal((12, 4)).astype(np.float32)
    features[slice(None) if everywhere else 5, 1] = bad
    order = graph_select(features, 7)
    assert order.shape == (7,)
    assert 0 <= order.min() <= order.max() < 12


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [(3,), (slice(None), 4), (slice(None),)])
def test_graph_ends_in_range_when_similarities_are_not_finite(
    bad: float, where: tuple[int | slice, ...]
) -> None:
    gram = np.random.default_rng(6).standard_normal((12, 12)).astype(np.float32)
    gram[where] = bad
    order = graph_greedy(gram, 7)
    assert order.shape == (7,)
    assert 0 <= order.min() <= order.max() < 12


def test_graph_computes_in_float32_from_half_precision_features() -> None:
    features = np.random.default_rng(4).standard_normal((64, 32)).astype(np.float16)
    run = session(features_model(64, 32, 20, ir.DataType.FLOAT16))
    order = np.asarray(run.run(None, {"features": features})[0])
    assert order.tolist() == DivPrune().select(features, 20).tolist()
