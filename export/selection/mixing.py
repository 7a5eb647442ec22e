"""Pieces that merging selectors share: one-hot rows, prefix counts, columns of signals."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.sizes import Size, as_size, dim, row_ids

__all__ = ["MixWriter"]


class MixWriter:
    """Rows of weights [K, N] for K kept tokens, in raster order, and the mixture they make.

    Attributes:
        ids: int32 [1, N], the numbers of the tokens.
        order: int32 [K, 1], kept tokens in the order chosen.
        ascending: int32 [K, 1], the same in raster order.
        chosen: float32 [K, N], 1 where the column is the row's own token.
    """

    def __init__(self, op: GraphWriter, order: ir.Value, num_tokens: Size, num_kept: Size) -> None:
        self._op = op
        column = op.constant(np.array([dim(num_kept), 1], np.int64), "column")
        self.axes = op.constant(np.array([1], np.int64), "per_row")
        self.axis = op.constant(np.array([0], np.int64), "per_column")
        self.ids = row_ids(op, num_tokens)
        narrow = op("Cast", order, to=ir.DataType.INT32)
        self.order = op("Reshape", narrow, column)
        count = as_size(op, num_kept, "num_kept")
        rising, _ = op.multi("TopK", narrow, count, num_outputs=2, largest=0, sorted=1)
        self.ascending = op("Reshape", rising, column)
        self.chosen = self.as_float(op("Equal", self.ascending, self.ids))

    def as_float(self, flags: ir.Value) -> ir.Value:
        """Bool to 0 and 1."""
        return self._op("Cast", flags, to=ir.DataType.FLOAT)

    def last(self) -> ir.Value:
        """int32 [1, 1]: the token chosen last."""
        op = self._op
        edges = -1, np.iinfo(np.int64).max
        start, stop = (op.constant(np.array([edge], np.int64), "edge") for edge in edges)
        return op("Slice", self.order, start, stop, self.axis)

    def column_flags(self, tokens: ir.Value) -> ir.Value:
        """float32 [1, N]: 1 for each of tokens [M, 1]."""
        op = self._op
        hits = self.as_float(op("Equal", tokens, self.ids))
        return op("ReduceMax", hits, self.axis, keepdims=1)

    def counted_up_to(self, flags: ir.Value) -> ir.Value:
        """float32 [R, N] of 0 and 1: how many 1 there are up to and including each column."""
        op = self._op
        upper = self.as_float(op("LessOrEqual", op("Transpose", self.ids, perm=[1, 0]), self.ids))
        return op("MatMul", flags, upper)
