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
from divprune.export.selection.mixing import MixWriter
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.export.selection.ranking import (
    LowestIndex,
    highest_first,
    ranking_regret,
    write_highest_first,
)
from divprune.export.selection.similarity import similarity, write_similarity
from divprune.export.selection.sizes import (
    Size,
    check_sizes,
    dim,
    int32_cell,
    row_ids,
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
    any_size: ClassVar[bool] = True
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
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The same as a subgraph: attention [N] to int64 [K]."""
        check_sizes(num_kept, num_tokens)
        with op.scope(self.name):
            row = op.constant(np.array([1, dim(num_tokens)], np.int64), "row")
            attention = op("Reshape", signals["cls_attention"], row)
            order = write_highest_first(op, attention, num_tokens, num_kept)
            if _may_have_targets(num_kept):
                order = _write_targets(op, order, num_tokens, num_kept)
            shape = op.constant(np.array([dim(num_kept)], np.int64), "shape")
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
        num_tokens: Size,
        num_kept: Size,
        signals: Values,
    ) -> ir.Value:
        """The same as a subgraph: weights [K, N] times features [N, V]."""
        with op.scope(self.name):
            mix = MixWriter(op, order, num_tokens, num_kept)
            weights = mix.chosen
            if _may_have_targets(num_kept):
                joined = self._joined(op, mix, num_kept, write_similarity(op, signals["keys"]))
                count = op("ReduceSum", joined, mix.axes, keepdims=1)
                one = op.constant(np.ones((1, 1), np.float32), "one")
                weights = op("Add", weights, op("Div", joined, op("Max", count, one)))
            return op("MatMul", weights, signals["patch_features"])

    def _joined(self, op: GraphWriter, mix: MixWriter, num_kept: Size, gram: ir.Value) -> ir.Value:
        """float32 [K, N]: 1 where the column's token joins the row's target.

        ::

            gram rows -- Where(row is a target) -- Equal(largest per column) -- lowest row

        Without any target the lowest row is found for every column, and left out in the end.
        """
        nothing = op.constant(np.array(-np.finfo(np.float32).max), "nothing")
        zero = op.constant(np.zeros((1, 1), np.float32), "zero")
        places = _Places(op, num_kept)
        is_own = op("Equal", mix.ascending, op("Transpose", mix.order, perm=[1, 0]))
        are_targets = op("And", is_own, op("Transpose", places.are_targets, perm=[1, 0]))
        is_target = op("ReduceMax", mix.as_float(are_targets), mix.axes, keepdims=1)
        rows = op("Gather", gram, op("Squeeze", mix.ascending, mix.axes))
        likeness = op("Where", op("Greater", is_target, zero), rows, nothing)
        best = op("Equal", likeness, op("ReduceMax", likeness, mix.axis, keepdims=1))
        lowest = LowestIndex(op, num_kept)
        nearest = lowest.write(op, op("Transpose", best, perm=[1, 0]))
        row_ids = op("Transpose", lowest.ids, perm=[1, 0])
        joins = mix.as_float(op("Equal", row_ids, op("Transpose", nearest, perm=[1, 0])))
        one = op.constant(np.ones((1, 1), np.float32), "free")
        others = op("Mul", joins, op("Sub", one, mix.column_flags(mix.order)))
        return op("Mul", others, is_target)


def _targets(dominant: npt.NDArray[np.int64], count: int, num_tokens: int) -> npt.NDArray[np.int64]:
    """``count`` evenly spaced tokens of those that are not dominant, ascending."""
    remaining = np.setdiff1d(np.arange(num_tokens), dominant)
    if count == 0:
        return remaining[:0]
    return remaining[: count * (len(remaining) // count) : len(remaining) // count][:count]


def _may_have_targets(num_kept: Size) -> bool:
    return not isinstance(num_kept, int) or num_targets(num_kept) > 0


class _Places:
    """The places 0 .. K - 1 of the order: the first K - C are dominant tokens, then targets.

    Attributes:
        are_targets: bool [K, 1].
    """

    def __init__(self, op: GraphWriter, num_kept: Size) -> None:
        self._op, self._num_kept = op, num_kept
        if isinstance(num_kept, int):
            numbers = np.arange(num_kept)[:, np.newaxis] >= num_kept - num_targets(num_kept)
            self.are_targets = op.constant(numbers, "are_targets")
            return
        parts = [op.constant(np.array([[n]], np.int32), "part") for n in (_TARGETS_OF_64, 64)]
        kept = int32_cell(op, num_kept, "kept")
        self._targets = op("Div", op("Mul", kept, parts[0]), parts[1], name="targets")
        self._dominant = op("Sub", kept, self._targets, name="dominant")
        self._ids = op("Transpose", row_ids(op, num_kept, "places"), perm=[1, 0])
        self.are_targets = op("GreaterOrEqual", self._ids, self._dominant)

    def wanted(self, num_tokens: Size) -> ir.Value:
        """Which of the remaining tokens, counted from 1, is the target of a place: float32 [K, 1].

        Places of dominant tokens have numbers without a meaning.
        """
        op = self._op
        if isinstance(self._num_kept, int) and isinstance(num_tokens, int):
            targets = num_targets(self._num_kept)
            dominant = self._num_kept - targets
            places = np.arange(self._num_kept)[:, np.newaxis] - dominant
            return op.constant(
                (places * ((num_tokens - dominant) // targets) + 1).astype(np.float32), "wanted"
            )
        one = op.constant(np.ones((1, 1), np.int32), "first")
        remaining = op("Sub", int32_cell(op, num_tokens, "tokens"), self._dominant)
        step = op("Div", remaining, op("Max", self._targets, one), name="step")
        offsets = op("Mul", op("Sub", self._ids, self._dominant), step)
        return op("Cast", op("Add", offsets, one), to=ir.DataType.FLOAT)


def _write_targets(op: GraphWriter, ranked: ir.Value, num_tokens: Size, num_kept: Size) -> ir.Value:
    """Append nodes for ``_targets``: the K highest tokens int32 [K, 1] to the order [K, 1]."""
    with op.scope("targets"):
        lowest, places = LowestIndex(op, num_tokens), _Places(op, num_kept)
        axis = op.constant(np.array([0], np.int64), "axis")
        is_dominant = op("Not", places.are_targets)
        taken = op("And", op("Equal", ranked, lowest.ids), is_dominant)
        one = op.constant(np.ones((1, 1), np.float32), "one")
        flags = op("Cast", taken, to=ir.DataType.FLOAT)
        free = op("Sub", one, op("ReduceMax", flags, axis, keepdims=1))
        upper = op("LessOrEqual", op("Transpose", lowest.ids, perm=[1, 0]), lowest.ids)
        counted = op("MatMul", free, op("Cast", upper, to=ir.DataType.FLOAT))
        # The first column at which that many are counted is the free one itself.
        targets = lowest.write(op, op("Equal", counted, places.wanted(num_tokens)))
        return op("Where", places.are_targets, targets, ranked)
