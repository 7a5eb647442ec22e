"""The nodes of a selection behind the image features, and the selection as a graph of its own.

They lie in a scope of their own, so that they can be taken out again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from divprune.export.graphs.files import ir_version
from divprune.export.graphs.splice import splice
from divprune.export.graphs.writer import GraphWriter

if TYPE_CHECKING:
    from divprune.export.selection import Selector

__all__ = [
    "OPSET",
    "SELECTION_SCOPE",
    "append_mixture",
    "append_selection",
    "name_order",
    "register",
    "write_selection",
]

OPSET = 20
SELECTION_SCOPE = "selection"

# Writes the nodes of a selection: features [N, D], N and K to the order int64 [K].
WriteOrder = Callable[[GraphWriter, ir.Value, int, int], ir.Value]
NO_SIGNALS: Mapping[str, tuple[str, Sequence[int]]] = MappingProxyType({})


def write_selection(
    selector: Selector,
    num_tokens: int,
    num_kept: int,
    hidden_size: int,
    dtype: ir.DataType,
    opset: int = OPSET,
    signals: Mapping[str, tuple[str, Sequence[int]]] = NO_SIGNALS,
) -> ir.Model:
    """The selection alone: what it reads in (image_features [N, hidden]), order and rows out.

    Args:
        selector: What chooses.
        num_tokens: N.
        num_kept: K.
        hidden_size: Width of the features.
        dtype: Of the features.
        opset: Operator set of the graph.
        signals: For each signal the selector needs, name and shape of the one that it gets:
            inputs too. A selector that merges writes float32 ``mixed_features`` [K, V], what the
            projector would read, instead of the kept rows.
    """
    features = ir.val("image_features", dtype=dtype, shape=(num_tokens, hidden_size))
    values = {
        name: ir.val(given, dtype=ir.DataType.FLOAT, shape=tuple(shape))
        for name, (given, shape) in signals.items()
    }
    inputs = [features, *values.values()]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": opset}, name="selection")
    if selector.merges:
        append_mixture(graph, features, selector, num_kept, values, None)
    else:
        append_selection(graph, features, partial(selector.write, signals=values), num_kept)
    if not features.uses():
        graph.inputs.remove(features)
    return ir.Model(graph, ir_version=ir_version(opset), producer_name="divprune-edge")


def append_selection(graph: ir.Graph, features: ir.Value, write: WriteOrder, num_kept: int) -> None:
    """selection_order, then the kept rows in raster order, as outputs of ``graph``."""
    hidden_size = _shape(features)[1]
    op = GraphWriter(graph, prefix=SELECTION_SCOPE)
    order = _write_order(graph, op, features, write, num_kept)
    count = op.constant(np.array([num_kept]), "num_kept")
    # TensorRT sorts int32 since 8.6, and fewer than 3840 of them.
    narrow = op("Cast", order, to=ir.DataType.INT32)
    ascending, _ = op.multi("TopK", narrow, count, num_outputs=2, largest=0, sorted=1)
    kept = op("Gather", features, ascending, axis=0)
    kept.name, kept.type = "selected_features", features.type
    kept.shape = ir.Shape([num_kept, hidden_size])
    register(graph, op)
    graph.outputs.extend([order, kept])


def append_mixture(
    graph: ir.Graph,
    features: ir.Value,
    selector: Selector,
    num_kept: int,
    signals: Mapping[str, ir.Value],
    projector: ir.Graph | None,
) -> None:
    """selection_order, then the projected mixtures in raster order, as outputs of ``graph``.

    Without ``projector`` they are the mixtures that it would read, float32.
    """
    num_tokens, hidden_size = _shape(features)
    op = GraphWriter(graph, prefix=SELECTION_SCOPE)
    order = _write_order(graph, op, features, partial(selector.write, signals=signals), num_kept)
    rows = selector.write_mix(op, order, num_tokens, num_kept, signals)
    if projector is None:
        rows.name, rows.type = "mixed_features", ir.TensorType(ir.DataType.FLOAT)
        rows.shape = ir.Shape([num_kept, _shape(signals["patch_features"])[1]])
    else:
        assert features.dtype is not None
        narrow = op("Cast", rows, to=features.dtype)
        rows = splice(graph, projector, narrow, f"{SELECTION_SCOPE}/projector")
        rows.name, rows.type = "selected_features", features.type
        rows.shape = ir.Shape([num_kept, hidden_size])
    register(graph, op)
    graph.outputs.extend([order, rows])


def name_order(order: ir.Value, num_kept: int) -> None:
    """Give a selection's order the name, type and shape of the output that it becomes."""
    order.name, order.type = "selection_order", ir.TensorType(ir.DataType.INT64)
    order.shape = ir.Shape([num_kept])


def register(graph: ir.Graph, op: GraphWriter) -> None:
    """Add the constants that ``op`` made to ``graph``."""
    for value in op.initializers:
        graph.register_initializer(value)


def _write_order(
    graph: ir.Graph, op: GraphWriter, features: ir.Value, write: WriteOrder, num_kept: int
) -> ir.Value:
    in_float32 = op("Cast", features, to=ir.DataType.FLOAT)
    order = write(op, in_float32, _shape(features)[0], num_kept)
    if not in_float32.uses():  # a selector that does not look at them
        graph.remove(op.nodes[0], safe=True)
    name_order(order, num_kept)
    return order


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(int(size) for size in value.shape.numpy())
