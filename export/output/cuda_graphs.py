"""The vision graph in three for ONNX Runtime on CUDA, where our kernel makes the choice.

A ``Loop`` asks the host before each of its steps there. Between these graphs nothing leaves the
device; they and the kernel do what ``vision/model.onnx`` does.

| file | made from | what it does |
|---|---|---|
| vision/features.onnx | vision/model.onnx, with its weights | pictures to image_features, planes |
| vision/similarities.onnx | the selector | image_features to what the kernel reads |
| vision/rows.onnx | | order and cover to the outputs of vision/model.onnx |
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from divprune.export.graphs.files import describe_graph, ir_version
from divprune.export.graphs.writer import GraphWriter
from divprune.export.planning.plan import ExportPlan
from divprune.export.selection import PluginSelector
from divprune.export.selection.selection_graph import KEPT_SLOTS, register, remove_selection
from divprune.export.selection.sizes import KEPT, TOKENS, size_of
from divprune.plugins.node import MAX_TOKENS
from divprune.runtime.directory.manifest import GraphSpec

__all__ = ["write_cuda_graphs", "write_rows", "write_similarities"]


def write_cuda_graphs(plan: ExportPlan, directory: Path) -> dict[str, GraphSpec]:
    """Write the three; their descriptions, none where CUDA or the kernel cannot do it."""
    selector = plan.pre_llm
    if plan.lane.limits is not None or not plan.runs_on_cuda:
        return {}
    if not isinstance(selector, PluginSelector):
        return {}
    if plan.num_image_tokens > MAX_TOKENS:
        return {}
    tower = ir.load(directory / "vision" / "model.onnx")
    features = remove_selection(tower.graph)
    tower.graph.inputs[:] = [each for each in tower.graph.inputs if each.name != KEPT_SLOTS]
    sizes = (None, None) if plan.varies else (plan.num_image_tokens, plan.num_kept)
    planes = plan.family.vision_outputs()
    models = {
        "vision_features": (tower, "vision/features.onnx"),
        "vision_similarities": (
            write_similarities(selector, features, plan.lane.vision_opset),
            "vision/similarities.onnx",
        ),
        "vision_rows": (
            write_rows(features, planes, sizes[1], plan.lane.vision_opset),
            "vision/rows.onnx",
        ),
    }
    for model, path in models.values():
        ir.save(model, directory / path)
    return {name: describe_graph(model, path) for name, (model, path) in models.items()}


def write_similarities(selector: PluginSelector, features: ir.Value, opset: int) -> ir.Model:
    """image_features [N, hidden] to float32 ``similarities`` [N, N], int32 ``first_token`` [1, 1].

    Args:
        selector: What chooses.
        features: Whose type and shape the input has.
        opset: Operator set of the graph.
    """
    rows = _like(features, "image_features")
    op = GraphWriter()
    num_tokens, _ = _shape(features)
    count = num_tokens if isinstance(num_tokens, int) else size_of(op, rows)
    wide = op("Cast", rows, to=ir.DataType.FLOAT)
    gram, first = selector.write_start(op, wide, count)
    gram.name, gram.type = "similarities", ir.TensorType(ir.DataType.FLOAT)
    gram.shape = ir.Shape([num_tokens, num_tokens])
    first.name, first.type = "first_token", ir.TensorType(ir.DataType.INT32)
    first.shape = ir.Shape([1, 1])
    return _model(op, [rows], [gram, first], "similarities", opset)


def write_rows(
    features: ir.Value, planes: Sequence[str], num_kept: int | None, opset: int
) -> ir.Model:
    """What becomes of a choice.

    | | name | dtype, shape |
    |---|---|---|
    | in | image_features, deepstack_i | float [N, hidden] |
    | in | order | int32 [1, K] |
    | in | cover | float32 [1, K] |
    | out | selection_order | int64 [K] |
    | out | selected_features, selected_deepstack_i | float [K, hidden], in raster order |
    | out | selection_cover | float32 [K] |
    | out | num_broken | int32 [1], rows of image_features with a NaN or Inf |

    Args:
        features: Whose type and shape the inputs have.
        planes: Names of the further rows.
        num_kept: K; None where it varies.
        opset: Operator set of the graph.
    """
    kept = KEPT if num_kept is None else num_kept
    op = GraphWriter()
    rows = [_like(features, name) for name in ("image_features", *planes)]
    order = ir.val("order", ir.DataType.INT32, (1, kept))
    cover = ir.val("cover", ir.DataType.FLOAT, (1, kept))
    flat = op.constant(np.array([-1], np.int64), "flat")
    chosen = op("Reshape", order, flat)
    count = size_of(op, chosen)
    ascending, _ = op.multi("TopK", chosen, count, num_outputs=2, largest=0, sorted=1)
    results: list[tuple[ir.Value, str, ir.DataType, list[int | str]]] = [
        (op("Cast", chosen, to=ir.DataType.INT64), "selection_order", ir.DataType.INT64, [kept]),
        (op("Reshape", cover, flat), "selection_cover", ir.DataType.FLOAT, [kept]),
        (_count_broken(op, rows[0]), "num_broken", ir.DataType.INT32, [1]),
    ]
    for each in rows:
        name = f"selected_{(each.name or '').removeprefix('image_')}"
        gathered = op("Gather", each, ascending, axis=0)
        results.append((gathered, name, _dtype(each), [kept, _shape(each)[1]]))
    for value, name, dtype, shape in results:
        value.name, value.type, value.shape = name, ir.TensorType(dtype), ir.Shape(shape)
    return _model(op, [*rows, order, cover], [value for value, *_ in results], "rows", opset)


def _count_broken(op: GraphWriter, rows: ir.Value) -> ir.Value:
    """Rows with a NaN or Inf, int32 [1]: times zero they are NaN, every number is zero."""
    axis = op.constant(np.array([1], np.int64), "width")
    zero = op("Cast", op.constant(np.zeros(1, np.float32), "zero"), to=_dtype(rows))
    sums = op("ReduceSum", op("Mul", rows, zero), axis, keepdims=0)
    broken = op("Cast", op("IsNaN", sums), to=ir.DataType.INT32)
    return op("ReduceSum", broken, op.constant(np.array([0], np.int64), "tokens"), keepdims=1)


def _model(
    op: GraphWriter, inputs: list[ir.Value], outputs: list[ir.Value], name: str, opset: int
) -> ir.Model:
    graph = ir.Graph(inputs, outputs, nodes=op.nodes, opset_imports={"": opset}, name=name)
    register(graph, op)
    return ir.Model(graph, ir_version=ir_version(opset), producer_name="divprune-edge")


def _like(features: ir.Value, name: str) -> ir.Value:
    return ir.val(name, _dtype(features), _shape(features))


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _shape(features: ir.Value) -> tuple[int | str, int]:
    """N, or the name of its dimension, and the width."""
    assert features.shape is not None
    num_tokens, width = features.shape
    assert isinstance(width, int)
    return num_tokens if isinstance(num_tokens, int) else TOKENS, width
