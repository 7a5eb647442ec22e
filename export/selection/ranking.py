"""Tokens by falling value, ties to the lowest index: in NumPy and in ONNX."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.sizes import Size, int32_cell, minus, row_ids

__all__ = ["LowestIndex", "highest_first", "ranking_regret", "write_highest_first"]


def highest_first(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Indices int64 [count] of the largest of values [N], falling; ties from the lowest up."""
    return np.argsort(-values, kind="stable")[:count].astype(np.int64)


def ranking_regret(values: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> float:
    """The largest shortfall of a choice from the largest value left, as a part of the largest.

    A token chosen twice is never worth it.
    """
    left = values.astype(np.float64)
    scale = float(max(np.abs(left).max(), np.finfo(np.float32).tiny))
    regret = 0.0
    for token in order:
        regret = max(regret, float(left.max() - left[token]) / scale)
        left[token] = -np.inf
    return regret


class LowestIndex:
    """Finds in each row of a table of bools the lowest column that is true.

    Its constants belong to the graph it is made in; a loop body captures them by name.
    """

    def __init__(self, op: GraphWriter, num_columns: Size) -> None:
        self.ids = row_ids(op, num_columns)
        self._beyond = int32_cell(op, num_columns, "beyond")
        self._last = int32_cell(op, minus(op, num_columns, 1, "last"), "last_id")
        self._axes = op.constant(np.array([1], np.int64), "axes")

    def write(self, op: GraphWriter, hits: ir.Value) -> ir.Value:
        """Append nodes: bool [R, N] to int32 [R, 1]; N - 1 for a row that is false throughout."""
        candidates = op("Where", hits, self.ids, self._beyond)
        return op("Min", op("ReduceMin", candidates, self._axes, keepdims=1), self._last)


def write_highest_first(
    op: GraphWriter, values: ir.Value, num_tokens: Size, count: Size
) -> ir.Value:
    """Append nodes for ``highest_first``: float32 [1, N] to int32 [count, 1].

    ::

        values --+-- Greater(column) ------------+
                 |                               Or -- sum per token -- Equal(0 .. count - 1)
                 +-- Equal(column) & lower id ---+                       -- lowest id

    Not ``TopK``, whose choice among equal values is left open. A token's place is the number
    of tokens before it. With a NaN places may be missing; indices still stay in range.
    """
    with op.scope("ranking"):
        lowest = LowestIndex(op, num_tokens)
        places = op("Transpose", _write_places(op, values, lowest.ids), perm=[1, 0])
        wanted = _column_of_places(op, count)
        return lowest.write(op, op("Equal", places, wanted))


def _column_of_places(op: GraphWriter, count: Size) -> ir.Value:
    """0, 1, ... below a count, float32 [count, 1]."""
    if isinstance(count, int):
        return op.constant(np.arange(count, dtype=np.float32)[:, np.newaxis], "places")
    column = op("Transpose", row_ids(op, count, "place_ids"), perm=[1, 0])
    return op("Cast", column, to=ir.DataType.FLOAT, name="places")


def _write_places(op: GraphWriter, values: ir.Value, ids: ir.Value) -> ir.Value:
    """Rank of each token (number of tokens before it): float32 [1, N] to float32 [N, 1]."""
    column, ids_column = (op("Transpose", value, perm=[1, 0]) for value in (values, ids))
    earlier = op("And", op("Equal", values, column), op("Less", ids, ids_column))
    before = op("Cast", op("Or", op("Greater", values, column), earlier), to=ir.DataType.FLOAT)
    return op("ReduceSum", before, op.constant(np.array([1], np.int64), "axes"), keepdims=1)
