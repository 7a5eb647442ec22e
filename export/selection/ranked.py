"""Selectors that keep the K most attended tokens."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.export.selection.ranking import (
    highest_first,
    ranking_regret,
    write_highest_first,
)
from divprune.export.selection.sizes import Size, check_sizes, dim

__all__ = ["RankedSelector"]


class RankedSelector(Selector):
    """The K tokens with the largest value of one signal, ties to the lowest index.

    Attributes:
        ranked_by: That signal; one of ``needs``.
    """

    ranked_by: ClassVar[str]

    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K], by falling value; the features [N, D] only have to be numbers."""
        check_count(num_kept, len(features))
        check_finite("visual features", features)
        return highest_first(check_finite("attention", signals[self.ranked_by]), num_kept)

    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """The largest shortfall of a choice from the largest value left, as a part of it."""
        return ranking_regret(signals[self.ranked_by], order)

    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The same as a subgraph over the signal alone."""
        check_sizes(num_kept, num_tokens)
        with op.scope(self.name):
            row = op.constant(np.array([1, dim(num_tokens)], np.int64), "row")
            values = op("Reshape", signals[self.ranked_by], row)
            chosen = write_highest_first(op, values, num_tokens, num_kept)
            shape = op.constant(np.array([dim(num_kept)], np.int64), "shape")
            return op("Cast", op("Reshape", chosen, shape), to=ir.DataType.INT64)
