"""The vision graph of a selector that shows the tower a smaller picture.

| | name | dtype, shape | meaning |
|---|---|---|---|
| in | pixel_values | float32 [1, 3, H, W] | as the model's own image processor makes them |
| out | selection_order | int64 [K] | the full picture's patches at the small ones' middles |
| out | selected_features | float [K, hidden] | all projected tokens of the small picture |

The full picture's ``image_features`` come from a graph of their own, so that nothing of the
full-size tower runs, or counts, where only the small one is used. Both share one data file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.graphs.files import ir_version
from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.downsample import interpolate_positions, write_resize
from divprune.export.selection.selection_graph import OPSET, SELECTION_SCOPE, name_order, register
from divprune.export.vision.trace import TracedInput, attach_weights, trace_module

if TYPE_CHECKING:
    import torch

    from divprune.export.selection import Selector

__all__ = ["small_size", "trace_downsampled", "write_resize_alone"]


def small_size(selector: Selector, num_kept: int) -> tuple[int, int]:
    """Height and width of the picture that the tower sees.

    Raises:
        TypeError: for a selector that has no pass of its own.
    """
    size = selector.pass_size(num_kept)
    if size is None:
        raise TypeError(f"{selector.name} has no pass of its own")
    return size


def trace_downsampled(
    module: torch.nn.Module,
    image_size: tuple[int, int],
    weights: WeightSource,
    selector: Selector,
    num_tokens: int,
    num_kept: int,
    opset: int = OPSET,
    *,
    int8_prefix: str | None = None,
) -> ir.Model:
    """Trace ``module``, the tower for the small picture, and write the resizing before it."""
    size = small_size(selector, num_kept)
    shape = (1, 3, *size)
    pixels = TracedInput("pixel_values", shape, "float32", shape)
    model = trace_module(module, [pixels], ["small_features"], weights, opset)
    graph = model.graph
    tables = {
        name: _positions(weights, name, image_size, size, selector)
        for name in map(weights.canonical_name, graph.initializers)
        if name.endswith("position_embedding.weight")
    }
    attach_weights(graph, weights, tables, int8_prefix=int8_prefix)
    op = GraphWriter(graph, prefix=SELECTION_SCOPE)
    _resize_input(graph, op, image_size, size)
    _write_outputs(graph, op, selector, num_tokens, num_kept)
    register(graph, op)
    graph.sort()
    return model


def write_resize_alone(
    selector: Selector,
    image_size: tuple[int, int],
    num_tokens: int,
    num_kept: int,
    opset: int = OPSET,
) -> ir.Model:
    """What the selector adds beside the tower: pixel_values to small_pixel_values."""
    size = small_size(selector, num_kept)
    pixels = ir.val("pixel_values", ir.DataType.FLOAT, (1, 3, *image_size))
    graph = ir.Graph([pixels], [], nodes=[], opset_imports={"": opset}, name="selection")
    op = GraphWriter(graph, prefix=SELECTION_SCOPE)
    order = _write_order(op, selector, num_tokens, num_kept)
    small = write_resize(op, pixels, image_size, size)
    small.name, small.type = "small_pixel_values", ir.TensorType(ir.DataType.FLOAT)
    small.shape = ir.Shape([1, 3, *size])
    register(graph, op)
    graph.outputs.extend([order, small])
    return ir.Model(graph, ir_version=ir_version(opset), producer_name="divprune-edge")


def _positions(
    weights: WeightSource,
    name: str,
    full: tuple[int, int],
    size: tuple[int, int],
    selector: Selector,
) -> ir.LazyTensor:
    """The checkpoint's position embeddings for as many patches as the small picture has."""
    grids = [_grid(pixels, selector) for pixels in (full, size)]
    rows, width = weights.shape(name)
    leading = rows - grids[0][0] * grids[0][1]

    def make() -> ir.TensorProtocol:
        table = weights.read(name)
        smaller = interpolate_positions(table.astype(np.float32), grids[0], grids[1])
        return ir.tensor(smaller.astype(table.dtype))

    shape = ir.Shape([leading + grids[1][0] * grids[1][1], width])
    return ir.LazyTensor(make, dtype=weights.dtype, shape=shape, name=name)


def _grid(size: tuple[int, int], selector: Selector) -> tuple[int, int]:
    patch = selector.setting.patch_size or 1
    return size[0] // patch, size[1] // patch


def _resize_input(
    graph: ir.Graph, op: GraphWriter, full: tuple[int, int], size: tuple[int, int]
) -> None:
    """Take pictures of full size, and give the tower small ones."""
    (small,) = graph.inputs
    small.name = "small_pixel_values"
    pixels = ir.val("pixel_values", ir.DataType.FLOAT, (1, 3, *full))
    resized = write_resize(op, pixels, full, size)
    ir.convenience.replace_all_uses_with(small, resized)
    graph.inputs[0] = pixels


def _write_outputs(
    graph: ir.Graph,
    op: GraphWriter,
    selector: Selector,
    num_tokens: int,
    num_kept: int,
) -> None:
    (features,) = graph.outputs
    assert features.shape is not None
    rows, hidden_size = (int(size) for size in features.shape.numpy())
    order = _write_order(op, selector, num_tokens, num_kept)
    kept = features
    if rows != num_kept:  # a class token in front, which has no patch
        bounds = [
            op.constant(np.array([edge], np.int64), "edge") for edge in (rows - num_kept, rows)
        ]
        axis = op.constant(np.array([0], np.int64), "axis")
        kept = op("Slice", features, *bounds, axis)
    kept.name, kept.type = "selected_features", features.type
    kept.shape = ir.Shape([num_kept, hidden_size])
    graph.outputs[:] = [order, kept]


def _write_order(op: GraphWriter, selector: Selector, num_tokens: int, num_kept: int) -> ir.Value:
    unused = ir.val("no_features", ir.DataType.FLOAT, (num_tokens, 1))
    order = selector.write(op, unused, num_tokens, num_kept)
    name_order(order, num_kept)
    return order
