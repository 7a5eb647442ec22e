"""The nodes of a selection behind the image features, and the selection as a graph of its own.

They lie in a scope of their own, so that they can be taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnx_ir as ir

from divprune.export.graphs.files import ir_version
from divprune.export.graphs.splice import splice
from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.protocol import NO_VALUES, PluginSelector, Values
from divprune.export.selection.sizes import KEPT, TOKENS, Size, as_size, size_of
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from divprune.export.selection import Selector

__all__ = [
    "KEPT_SLOTS",
    "OPSET",
    "SELECTION_SCOPE",
    "append_mixture",
    "append_selection",
    "kept_slots",
    "name_order",
    "register",
    "remove_selection",
    "write_selection",
]

OPSET = 20
SELECTION_SCOPE = "selection"

NO_SIGNALS: Mapping[str, tuple[str, Sequence[int | str]]] = MappingProxyType({})
KEPT_SLOTS = "kept_slots"
"""The input whose length is K where N varies; its values are not read."""


def write_selection(
    selector: Selector,
    num_tokens: int | None,
    num_kept: int | None,
    hidden_size: int,
    dtype: ir.DataType,
    opset: int = OPSET,
    signals: Mapping[str, tuple[str, Sequence[int | str]]] = NO_SIGNALS,
) -> ir.Model:
    """The selection alone: what it reads in (image_features [N, hidden]), order and rows out.

    Args:
        selector: What chooses.
        num_tokens: N; None where it varies.
        num_kept: K; None where N varies: then it is the length of ``kept_slots``.
        hidden_size: Width of the features.
        dtype: Of the features.
        opset: Operator set of the graph.
        signals: For each signal the selector needs, name and shape of the one that it gets:
            inputs too. A selector that merges writes float32 ``mixed_features`` [K, V], what the
            projector would read, instead of the kept rows.

    Raises:
        UnsupportedError: if N varies and the selector needs one that does not.
    """
    shape = (TOKENS if num_tokens is None else num_tokens, hidden_size)
    features = ir.val("image_features", dtype=dtype, shape=shape)
    values = {
        name: ir.val(given, dtype=ir.DataType.FLOAT, shape=tuple(shape))
        for name, (given, shape) in signals.items()
    }
    inputs = [features, *values.values()]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": opset}, name="selection")
    if selector.merges and selector.needs:
        append_mixture(graph, features, selector, num_kept, values, None)
    else:
        append_selection(graph, features, selector, num_kept, values)
    if not features.uses():
        graph.inputs.remove(features)
    return ir.Model(graph, ir_version=ir_version(opset), producer_name="divprune-edge")


def append_selection(
    graph: ir.Graph,
    features: ir.Value,
    selector: Selector,
    num_kept: int | None,
    signals: Values = NO_VALUES,
    *,
    with_plugin: bool = False,
) -> None:
    """Append a selection: its order and the kept rows in raster order become outputs.

    They are ``selection_order`` and ``selected_features``, and ``selection_cover`` where the
    selector has one.

    Args:
        graph: Of the features.
        features: float [N, hidden].
        selector: What chooses.
        num_kept: K; None where N varies: then it is the length of the input ``kept_slots``,
            which is added to the graph.
        signals: What the selector reads beside the features.
        with_plugin: Let the plugin's node choose, for a ``PluginSelector``.

    Raises:
        UnsupportedError: if N varies and the selector needs one that does not.
    """
    op = GraphWriter(graph, prefix=SELECTION_SCOPE)
    sizes = _sizes(graph, op, features, selector, num_kept)
    order, *cover = _write_choice(graph, op, features, selector, sizes, signals, with_plugin)
    name_order(order, num_kept)
    # TensorRT sorts int32 since 8.6, and fewer than 3840 of them.
    narrow = op("Cast", order, to=ir.DataType.INT32)
    count = as_size(op, sizes[1], "num_kept")
    ascending, _ = op.multi("TopK", narrow, count, num_outputs=2, largest=0, sorted=1)
    kept = op("Gather", features, ascending, axis=0)
    kept.name, kept.type = "selected_features", features.type
    kept.shape = ir.Shape([_or_kept(num_kept), _width(features)])
    for value in cover:
        value.name, value.type = "selection_cover", ir.TensorType(ir.DataType.FLOAT)
        value.shape = order.shape
    register(graph, op)
    graph.outputs.extend([order, kept, *cover])


def remove_selection(graph: ir.Graph) -> ir.Value:
    """Take out everything that was appended; the features, an output or input of ``graph``."""

    def is_appended(name: str | None) -> bool:
        return (name or "").startswith(f"{SELECTION_SCOPE}/")

    ends = (*graph.inputs, *graph.outputs)
    (features,) = (value for value in ends if value.name == "image_features")
    nodes = [node for node in graph if is_appended(node.name)]
    graph.outputs[:] = [value for value in graph.outputs if value.producer() not in nodes]
    for node in nodes:
        graph.remove(node)
    for name in [name for name in graph.initializers if is_appended(name)]:
        del graph.initializers[name]
    return features


def append_mixture(
    graph: ir.Graph,
    features: ir.Value,
    selector: Selector,
    num_kept: int | None,
    signals: Values,
    projector: ir.Graph | None,
) -> None:
    """selection_order, then the projected mixtures in raster order, as outputs of ``graph``.

    As ``append_selection``; ``projector`` takes rows [K, V]. Without it they are the mixtures
    that it would read, float32.
    """
    op = GraphWriter(graph, prefix=SELECTION_SCOPE)
    sizes = _sizes(graph, op, features, selector, num_kept)
    order, *_ = _write_choice(graph, op, features, selector, sizes, signals)
    name_order(order, num_kept)
    rows = selector.write_mix(op, order, *sizes, signals)
    if projector is None:
        rows.name, rows.type = "mixed_features", ir.TensorType(ir.DataType.FLOAT)
        rows.shape = ir.Shape([_or_kept(num_kept), _width(signals["patch_features"])])
    else:
        assert features.dtype is not None
        narrow = op("Cast", rows, to=features.dtype)
        rows = splice(graph, projector, narrow, f"{SELECTION_SCOPE}/projector")
        rows.name, rows.type = "selected_features", features.type
        rows.shape = ir.Shape([_or_kept(num_kept), _width(features)])
    register(graph, op)
    graph.outputs.extend([order, rows])


def name_order(order: ir.Value, num_kept: int | None) -> None:
    """Give a selection's order the name, type and shape of the output that it becomes."""
    order.name, order.type = "selection_order", ir.TensorType(ir.DataType.INT64)
    order.shape = ir.Shape([_or_kept(num_kept)])


def register(graph: ir.Graph, op: GraphWriter) -> None:
    """Add the constants that ``op`` made to ``graph``."""
    for value in op.initializers:
        graph.register_initializer(value)


def kept_slots(graph: ir.Graph) -> ir.Value:
    """The input of that name, which is added if it is missing."""
    for value in graph.inputs:
        if value.name == KEPT_SLOTS:
            return value
    slots = ir.val(KEPT_SLOTS, ir.DataType.INT32, [KEPT])
    graph.inputs.append(slots)
    return slots


def _sizes(
    graph: ir.Graph,
    op: GraphWriter,
    features: ir.Value,
    selector: Selector,
    num_kept: int | None,
) -> tuple[Size, Size]:
    """N and K: numbers, or values where they vary."""
    if num_kept is not None:
        assert features.shape is not None
        return int(features.shape.numpy()[0]), num_kept
    if not selector.any_size:
        raise UnsupportedError(
            f"--selector {selector.name} needs pictures of one size",
            expected="a fixed number of visual tokens",
            found="one that varies from picture to picture",
            fix="--selector divprune",
        )
    with op.scope("sizes"):
        return size_of(op, features), size_of(op, kept_slots(graph))


def _write_choice(
    graph: ir.Graph,
    op: GraphWriter,
    features: ir.Value,
    selector: Selector,
    sizes: tuple[Size, Size],
    signals: Values,
    with_plugin: bool = False,
) -> tuple[ir.Value, ...]:
    """The order, and the cover where there is one, from features in float32."""
    before = len(op.nodes)
    in_float32 = _in_float32(op, features)
    casts = list(op.nodes)[before:]
    chosen: tuple[ir.Value, ...]
    if with_plugin:
        assert isinstance(selector, PluginSelector), selector.name
        slots = None if isinstance(sizes[1], int) else kept_slots(graph)
        chosen = selector.write_with_plugin(op, in_float32, *sizes, slots)
    elif selector.covers:
        chosen = selector.write_covered(op, in_float32, *sizes, signals)
    else:
        chosen = (selector.write(op, in_float32, *sizes, signals),)
    if not in_float32.uses():  # a selector that does not look at them
        graph.remove(casts, safe=True)
    return chosen


def _in_float32(op: GraphWriter, features: ir.Value) -> ir.Value:
    """The features in float32, with no more digits than they have.

    On a CPU ONNX Runtime computes float16 in float32 and lets casts there and back cancel out: the
    selection would read numbers that were not rounded, and choose other tokens. Behind another
    operator it takes no such cast away.
    """
    wide = op("Cast", features, to=ir.DataType.FLOAT)
    if features.dtype != ir.DataType.FLOAT16:
        return wide
    apart = op("Flatten", wide, axis=1)  # of two dimensions: as it was
    return op("Cast", op("Cast", apart, to=ir.DataType.FLOAT16), to=ir.DataType.FLOAT)


def _or_kept(num_kept: int | None) -> int | str:
    return KEPT if num_kept is None else num_kept


def _width(rows: ir.Value) -> int:
    assert rows.shape is not None
    width = rows.shape[1]
    assert isinstance(width, int)
    return width
