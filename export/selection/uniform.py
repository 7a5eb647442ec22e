"""Tokens spread evenly over the picture, whatever it shows: a baseline.

K tokens on a grid of R x C patches: r = round(sqrt(K R / C)) of the rows are used, as evenly
as they go, and K is shared among them as evenly as it goes; each row's tokens then lie in the
middle of equal parts of it. A class token in front is left out unless every token is kept.

Where N varies there is no one grid: the tokens are taken as one row, in raster order.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.fixed_order import FixedOrder
from divprune.export.selection.sizes import int32_cell, row_ids

__all__ = ["Uniform", "middles"]


class Uniform(FixedOrder):
    """K tokens in rows and columns that are as even as K allows; raster order."""

    name: ClassVar[str] = "uniform"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = False
    any_size: ClassVar[bool] = True

    @property
    def parameters(self) -> dict[str, Any]:
        """The grid, where it was given and is used."""
        if self.setting.max_tokens is not None:
            return {"layout": "one row"}
        return {"grid": list(self.setting.grid)} if self.setting.grid else {}

    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        """Indices int64 [K], ascending."""
        if self.setting.max_tokens is not None:
            return middles(num_tokens, num_kept)
        rows, columns, leading = self.patch_grid(num_tokens)
        in_grid = min(num_kept, rows * columns)
        used = min(max(round(sqrt(in_grid * rows / columns)), ceil(in_grid / columns)), rows)
        ends = np.arange(used + 1) * in_grid // used
        picks = [
            row * columns + middles(columns, count)
            for row, count in zip(middles(rows, used), np.diff(ends), strict=True)
        ]
        front = np.arange(num_kept - in_grid)
        return np.concatenate([front, leading + np.concatenate(picks)]).astype(np.int64)

    def write_order(self, op: GraphWriter, num_tokens: ir.Value, num_kept: ir.Value) -> ir.Value:
        """``middles`` as a subgraph, in int32: N and K stay far below 2 ** 15."""
        one, two = (op.constant(np.array([[n]], np.int32), f"times_{n}") for n in (1, 2))
        odd = op("Add", op("Mul", row_ids(op, num_kept), two), one)
        ends = op("Mul", odd, int32_cell(op, num_tokens, "length"))
        parts = op("Mul", int32_cell(op, num_kept, "count"), two)
        flat = op("Reshape", op("Div", ends, parts), op.constant(np.array([-1], np.int64), "flat"))
        return op("Cast", flat, to=ir.DataType.INT64)


def middles(length: int, count: int) -> npt.NDArray[np.int64]:
    """The places in 0..length - 1 in the middle of ``count`` equal parts, all different."""
    return (2 * np.arange(count) + 1) * length // (2 * count)
