"""Selectors whose choice is known at export: the graph holds it as a constant."""

from __future__ import annotations

from abc import abstractmethod
from math import inf, isqrt

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.export.selection.sizes import Size, as_size

__all__ = ["FixedOrder"]


class FixedOrder(Selector):
    """A selector that chooses without looking."""

    @abstractmethod
    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        """Indices int64 [K], in the order chosen, for K in 1..N."""

    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """The choice, whatever the features [N, D] are, as long as they are numbers."""
        check_count(num_kept, len(features))
        check_finite("visual features", features)
        return self.order(len(features), num_kept)

    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """0 for the fixed choice, infinite for any other."""
        return 0.0 if np.array_equal(order, self.order(len(features), len(order))) else inf

    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The choice as a constant int64 [K], behind one node: a graph output needs one."""
        with op.scope(self.name):
            if not isinstance(num_tokens, int) or not isinstance(num_kept, int):
                sizes = as_size(op, num_tokens, "num_tokens"), as_size(op, num_kept, "num_kept")
                return self.write_order(op, *sizes)
            check_count(num_kept, num_tokens)
            return op("Identity", op.constant(self.order(num_tokens, num_kept), "order"))

    def write_order(self, op: GraphWriter, num_tokens: ir.Value, num_kept: ir.Value) -> ir.Value:
        """Append ``order`` as a subgraph, for N and K that are int64 [1]: int64 [K].

        Asked of selectors of ``any_size``, which have to say it.
        """
        raise NotImplementedError(f"{self.name} writes no order for pictures of any size")

    def patch_grid(self, num_tokens: int) -> tuple[int, int, int]:
        """Rows and columns of patches, and the number of tokens before the first of them."""
        if self.setting.grid is not None:
            rows, columns = self.setting.grid
            return rows, columns, num_tokens - rows * columns
        for leading in (0, 1):
            side = isqrt(num_tokens - leading)
            if side and side**2 == num_tokens - leading:
                return side, side, leading
        return 1, num_tokens, 0
