"""VisionZip: the most attended tokens, the others merged into evenly spaced ones.

arXiv 2412.04467. With a = attention of the class token, mean over heads, in the layer that
made the features (for LLaVA-1.5 the last but one):

- the dominant tokens are those of largest a, as they are; ties go to the lowest index;
- of the M remaining ones, in raster order, every floor(M / C)-th is a target, C in all; each
  other remaining token joins the target with the most similar key (cosine, heads side by
  side, ties to the earlier target), and a target becomes x_t + the mean of those that joined.

Both happen on the tower's features, before the projector. What was chosen here: K is split as
in the authors' setting for 64 tokens, 54 dominant and 10 targets, so C = floor(10 K / 64). The
class token itself, which the authors also hand over, is left out: it has no place in the
raster. ``selection_order`` has the dominant tokens by falling a, then the targets, ascending.

Towers without a class token (SigLIP): the mean attention that a token receives stands for a,
as the authors do it there; the manifest says which was used.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.divprune import similarity, write_similarity
from divprune.export.selection.mixing import MixWriter
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.export.selection.ranking import (
    LowestIndex,
    highest_first,
    ranking_regret,
    write_highest_first,
)

__all__ = ["VisionZip", "num_targets"]

_TARGETS_OF_64 = 10


def num_targets(num_kept: int) -> int:
    """C of K: how many of the kept tokens take in others."""
    return num_kept * _TARGETS_OF_64 // 64


class VisionZip(Selector):
    """K - C tokens by attention and C evenly spaced ones that take in all others."""

    name: ClassVar[str] = "visionzip"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    inside_llm: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("cls_attention", "keys", "patch_features")
    substitutes: ClassVar[Mapping[str, str]] = {"cls_attention": "mean_attention"}

    @property
    def parameters(self) -> dict[str, Any]:
        """How K is split."""
        return {"targets_of_64": _TARGETS_OF_64}

    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K]: dominant tokens by falling attention, then targets, ascending."""
        check_count(num_kept, len(features))
        check_finite("visual features", features)
        attention = check_finite("attention of the class token", signals["cls_attention"])
        targets = num_targets(num_kept)
        dominant = highest_first(attention, num_kept - targets)
        return np.concatenate([dominant, _targets(dominant, targets, len(features))])

    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """Of the dominant tokens' ranking; infinite where the targets do not follow from them."""
        targets = num_targets(len(order))
        dominant = order[: len(order) - targets]
        if not np.array_equal(order[len(dominant) :], _targets(dominant, targets, len(features))):
            return inf
        return ranking_regret(signals["cls_attention"], dominant)

    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: int,
        num_kept: int,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The same as a subgraph: attention [N] to int64 [K]."""
        check_count(num_kept, num_tokens)
        targets = num_targets(num_kept)
        with op.scope(self.name):
            row = op.constant(np.array([1, num_tokens], np.int64), "row")
            attention = op("Reshape", signals["cls_attention"], row)
            order = write_highest_first(op, attention, num_tokens, num_kept - targets)
            if targets:
                found = _write_targets(op, order, num_tokens, num_kept - targets, targets)
                order = op("Concat", order, found, axis=0)
            shape = op.constant(np.array([num_kept], np.int64), "shape")
            return op("Cast", op("Reshape", order, shape), to=ir.DataType.INT64)

    def mix(self, order: npt.NDArray[np.int64], signals: Arrays) -> npt.NDArray[np.float32]:
        """float32 [K, V] in raster order, from the tokens' features [N, V]."""
        rows = check_finite("tower's features", signals["patch_features"])
        targets = np.sort(order[len(order) - num_targets(len(order)) :])
        mixed = rows[np.sort(order)]
        joining = np.setdiff1d(np.arange(len(rows)), order)
        if not targets.size or not joining.size:
            return mixed
        likeness = similarity(signals["keys"])[np.ix_(targets, joining)]
        nearest = likeness.argmax(axis=0)  # the first of several
        places = np.searchsorted(np.sort(order), targets)
        for index, place in enumerate(places):
            if (joined := joining[nearest == index]).size:
                mixed[place] += rows[joined].mean(axis=0, dtype=np.float32)
        return mixed

    def write_mix(
        self,
        op: GraphWriter,
        order: ir.Value,
        num_tokens: int,
        num_kept: int,
        signals: Values,
    ) -> ir.Value:
        """The same as a subgraph: weights [K, N] times features [N, V]."""
        with op.scope(self.name):
            mix = MixWriter(op, order, num_tokens, num_kept)
            weights = mix.chosen
            if num_targets(num_kept):
                joined = self._joined(op, mix, num_kept, write_similarity(op, signals["keys"]))
                count = op("ReduceSum", joined, mix.axes, keepdims=1)
                one = op.constant(np.ones((1, 1), np.float32), "one")
                weights = op("Add", weights, op("Div", joined, op("Max", count, one)))
            return op("MatMul", weights, signals["patch_features"])

    def _joined(self, op: GraphWriter, mix: MixWriter, num_kept: int, gram: ir.Value) -> ir.Value:
        """float32 [K, N]: 1 where the column's token joins the row's target.

        ::

            gram rows -- Where(row is a target) -- Equal(largest per column) -- lowest row
        """
        nothing = op.constant(np.array(-np.finfo(np.float32).max), "nothing")
        zero = op.constant(np.zeros((1, 1), np.float32), "zero")
        targets = mix.part(num_kept - num_targets(num_kept), num_kept)
        is_target = mix.are_among(mix.ascending, op("Transpose", targets, perm=[1, 0]))
        rows = op("Gather", gram, op("Squeeze", mix.ascending, mix.axes))
        likeness = op("Where", op("Greater", is_target, zero), rows, nothing)
        best = op("Equal", likeness, op("ReduceMax", likeness, mix.axis, keepdims=1))
        lowest = LowestIndex(op, num_kept)
        nearest = lowest.write(op, op("Transpose", best, perm=[1, 0]))
        row_ids = op("Transpose", lowest.ids, perm=[1, 0])
        joins = mix.as_float(op("Equal", row_ids, op("Transpose", nearest, perm=[1, 0])))
        one = op.constant(np.ones((1, 1), np.float32), "free")
        return op("Mul", joins, op("Sub", one, mix.column_flags(mix.order)))


def _targets(dominant: npt.NDArray[np.int64], count: int, num_tokens: int) -> npt.NDArray[np.int64]:
    """``count`` evenly spaced tokens of those that are not dominant, ascending."""
    remaining = np.setdiff1d(np.arange(num_tokens), dominant)
    if count == 0:
        return remaining[:0]
    return remaining[: count * (len(remaining) // count) : len(remaining) // count][:count]


def _write_targets(
    op: GraphWriter, dominant: ir.Value, num_tokens: int, num_dominant: int, count: int
) -> ir.Value:
    """Append nodes for ``_targets``: int32 [num_dominant, 1] to int32 [count, 1]."""
    with op.scope("targets"):
        lowest = LowestIndex(op, num_tokens)
        axis = op.constant(np.array([0], np.int64), "axis")
        taken = op("Cast", op("Equal", dominant, lowest.ids), to=ir.DataType.FLOAT)
        one = op.constant(np.ones((1, 1), np.float32), "one")
        free = op("Sub", one, op("ReduceMax", taken, axis, keepdims=1))
        upper = op("LessOrEqual", op("Transpose", lowest.ids, perm=[1, 0]), lowest.ids)
        counted = op("MatMul", free, op("Cast", upper, to=ir.DataType.FLOAT))
        step = (num_tokens - num_dominant) // count
        wanted = np.arange(count, dtype=np.float32)[:, np.newaxis] * step + 1
        places = op.constant(wanted, "places")
        # The first column at which that many are counted is the free one itself.
        return lowest.write(op, op("Equal", counted, places))
