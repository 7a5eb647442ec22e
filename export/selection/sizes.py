"""N and K of a subgraph: numbers, or values that the graph computes from the shape of an input.

A number becomes a constant of the graph. A value is int64 [1] and comes from ``Shape``, never
from the content of a tensor: every runtime then knows all shapes before it runs.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count

__all__ = [
    "KEPT",
    "TOKENS",
    "Size",
    "as_size",
    "axis",
    "check_sizes",
    "dim",
    "filled_row",
    "ids_below",
    "int32_cell",
    "item",
    "minus",
    "row_ids",
    "size_of",
]

Size: TypeAlias = "int | ir.Value"
TOKENS, KEPT = "tokens", "kept"
"""Names of the dimensions N and K where they vary."""


def size_of(op: GraphWriter, value: ir.Value, axis: int = 0) -> ir.Value:
    """The length of one axis of ``value``, int64 [1]."""
    return op("Shape", value, start=axis, end=axis + 1)


def check_sizes(num_kept: Size, num_tokens: Size) -> None:
    """Check that K is in 1..N, as far as both are known.

    Raises:
        OptionError: if it is not.
    """
    if isinstance(num_kept, int) and isinstance(num_tokens, int):
        check_count(num_kept, num_tokens)


def axis(size: Size, name: str) -> int | str:
    """A size in the shape of a value: itself, or the name of the dimension that varies."""
    return size if isinstance(size, int) else name


def dim(size: Size) -> int:
    """What stands for a size in the shape of a ``Reshape``: -1 lets it follow from the rest."""
    return size if isinstance(size, int) else -1


def as_size(op: GraphWriter, size: Size, name: str) -> ir.Value:
    """A size as int64 [1]."""
    return op.constant(np.array([size], np.int64), name) if isinstance(size, int) else size


def item(op: GraphWriter, size: Size, name: str) -> ir.Value:
    """A size as int64 [], as trips of a ``Loop`` or an end of a ``Range``."""
    if isinstance(size, int):
        return op.constant(np.array(size, np.int64), name)
    return op("Squeeze", size, op.constant(np.array([0], np.int64), "only"), name=name)


def minus(op: GraphWriter, size: Size, number: int, name: str) -> Size:
    """A size less a number."""
    if isinstance(size, int):
        return size - number
    return op("Sub", size, op.constant(np.array([number], np.int64), f"less_{number}"), name=name)


def int32_cell(op: GraphWriter, size: Size, name: str) -> ir.Value:
    """A size as int32 [1, 1]."""
    if isinstance(size, int):
        return op.constant(np.array([[size]], np.int32), name)
    cell = op("Reshape", size, op.constant(np.array([1, 1], np.int64), "cell"))
    return op("Cast", cell, to=ir.DataType.INT32, name=name)


def ids_below(op: GraphWriter, size: Size, name: str) -> ir.Value:
    """0, 1, ... below a size, int64 [size]."""
    if isinstance(size, int):
        return op.constant(np.arange(size, dtype=np.int64), name)
    start, step = (op.constant(np.array(number, np.int64), f"from_{number}") for number in (0, 1))
    return op("Range", start, item(op, size, "end"), step, name=name)


def row_ids(op: GraphWriter, size: Size, name: str = "ids") -> ir.Value:
    """0, 1, ... below a size, int32 [1, size]."""
    if isinstance(size, int):
        return op.constant(np.arange(size, dtype=np.int32)[np.newaxis], name)
    row = op(
        "Reshape", ids_below(op, size, "below"), op.constant(np.array([1, -1], np.int64), "row")
    )
    return op("Cast", row, to=ir.DataType.INT32, name=name)


def filled_row(op: GraphWriter, size: Size, number: float, name: str) -> ir.Value:
    """The same number as often as a size says, float32 [1, size]."""
    if isinstance(size, int):
        return op.constant(np.full((1, size), number, np.float32), name)
    one = op.constant(np.ones(1, np.int64), "one_row")
    shape = op("Concat", one, size, axis=0)
    return op("Expand", op.constant(np.full((1, 1), number, np.float32), "fill"), shape, name=name)
