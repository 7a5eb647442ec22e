"""DivPrune's subgraphs as models, and their results on ONNX Runtime."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime as ort

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.divprune import DivPrune, write_greedy_max_min
from divprune.export.selection.similarity import GramWriter

Floats = npt.NDArray[np.float32]
Order = npt.NDArray[np.int64]


def _model(op: GraphWriter, graph_input: ir.Value, order: ir.Value) -> ir.Model:
    order.name = "order"
    order.shape = ir.Shape(["K"])
    order.dtype = ir.DataType.INT64
    graph = ir.Graph(
        [graph_input],
        [order],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": 20},
        name="selection",
    )
    return ir.Model(graph, ir_version=10)


def features_model(
    num_tokens: int, width: int, num_kept: int, dtype: ir.DataType = ir.DataType.FLOAT
) -> onnx.ModelProto:
    features = ir.val("features", dtype, [num_tokens, width])
    op = GraphWriter()
    order = DivPrune().write(op, features, num_tokens, num_kept)
    return ir.to_proto(_model(op, features, order))


def greedy_model(num_tokens: int, num_kept: int) -> onnx.ModelProto:
    gram = ir.val("gram", ir.DataType.FLOAT, [num_tokens, num_tokens])
    op = GraphWriter()
    order, _ = write_greedy_max_min(op, GramWriter(gram), num_tokens, num_kept)
    return ir.to_proto(_model(op, gram, order))


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@cache
def _features_session(num_tokens: int, width: int, num_kept: int) -> ort.InferenceSession:
    return session(features_model(num_tokens, width, num_kept))


@cache
def _greedy_session(num_tokens: int, num_kept: int) -> ort.InferenceSession:
    return session(greedy_model(num_tokens, num_kept))


def graph_select(features: Floats, num_kept: int) -> Order:
    run = _features_session(*features.shape, num_kept)
    return np.asarray(run.run(None, {"features": features})[0])


def graph_greedy(gram: Floats, num_kept: int) -> Order:
    return np.asarray(_greedy_session(len(gram), num_kept).run(None, {"gram": gram})[0])
