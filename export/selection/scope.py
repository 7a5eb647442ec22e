"""SCOPE: greedy coverage times importance (arXiv 2510.24214).

A token covers the tokens that resemble it. With cover_i the largest similarity of token i to
the selected ones (0 at first), the gain of token j is the coverage that it adds,

    gain_j = sum over i of max(0, cos_ij - cover_i),

and the next token is the one with the largest gain_j * importance_j. Ties go to the lowest
index. The order is greedy, so a prefix of it is what a smaller count chooses.

Where this comes from and what was chosen: the formula and exponent 1 of the importance as the
authors run it, from a description of their code; similarities of the *projected* features, as
DivPrune's here, in float32; importance = attention of the class token, mean over heads, in the
layer that made the features. Towers without a class token (SigLIP): the mean attention that a
token receives stands for it; the manifest says which was used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.export.selection.ranking import LowestIndex
from divprune.export.selection.similarity import similarity, write_similarity
from divprune.export.selection.sizes import TOKENS, Size, axis, check_sizes, dim, filled_row, item

__all__ = ["Scope"]

_NOTHING = np.float32(-np.finfo(np.float32).max)


class Scope(Selector):
    """Greedy choice of the token that adds most coverage, weighted by importance."""

    name: ClassVar[str] = "scope"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = False
    any_size: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("cls_attention",)
    substitutes: ClassVar[Mapping[str, str]] = {"cls_attention": "mean_attention"}

    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K] of the kept rows of features [N, D], in the order chosen."""
        check_count(num_kept, len(features))
        importance = check_finite("attention of the class token", signals["cls_attention"])
        gram = similarity(features)
        cover = np.zeros(len(gram), np.float32)
        free = np.ones(len(gram), bool)
        order = np.empty(num_kept, np.int64)
        for step in range(num_kept):
            scores = _scores(gram, cover, importance)
            order[step] = np.where(free, scores, _NOTHING).argmax()  # the first of several
            free[order[step]] = False
            np.maximum(cover, gram[order[step]], out=cover)
        return order

    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """The largest shortfall of a choice's score, as a part of the first step's best."""
        gram, importance = similarity(features), np.asarray(signals["cls_attention"], np.float32)
        cover = np.zeros(len(gram), np.float32)
        free = np.ones(len(gram), bool)
        first_best = _scores(gram, cover, importance).max()
        scale = float(max(first_best, np.finfo(np.float32).tiny))
        regret = 0.0
        for token in order:
            scores = np.where(free, _scores(gram, cover, importance), _NOTHING)
            regret = max(regret, float(scores.max() - np.float64(scores[token])) / scale)
            free[token] = False
            np.maximum(cover, gram[token], out=cover)
        return regret

    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The same as a subgraph: features [N, D] and importance [N] to int64 [K].

        ::

            features -- similarity -- gram [N, N] --+
            importance [N] -- Reshape [1, N] -------+-- Loop, K times -- Reshape -- order [K]
        """
        check_sizes(num_kept, num_tokens)
        with op.scope(self.name):
            row = op.constant(np.array([1, dim(num_tokens)], np.int64), "row")
            importance = op("Reshape", signals["cls_attention"], row)
            loop = _LoopWriter(op, write_similarity(op, features), importance, num_tokens)
            chosen = op("Cast", loop.write(num_kept), to=ir.DataType.INT64)
            shape = op.constant(np.array([dim(num_kept)], np.int64), "shape")
            return op("Reshape", chosen, shape)


def _scores(
    gram: npt.NDArray[np.float32],
    cover: npt.NDArray[np.float32],
    importance: npt.NDArray[np.float32],
) -> npt.NDArray[np.float32]:
    """What each token [N] would add, weighted. Row j of ``gram``: token j against all."""
    gains: npt.NDArray[np.float32] = np.maximum(gram - cover, 0).sum(axis=1, dtype=np.float32)
    return gains * importance


class _LoopWriter:
    """The greedy loop over one similarity matrix; its state has rank 2, as TensorRT wants."""

    def __init__(
        self, op: GraphWriter, gram: ir.Value, importance: ir.Value, num_tokens: Size
    ) -> None:
        self._op = op
        self._gram, self._importance = gram, importance
        self._num_tokens = num_tokens
        self._lowest = LowestIndex(op, num_tokens)
        self._nothing = op.constant(np.array(_NOTHING), "nothing")
        self._zero = op.constant(np.zeros((1, 1), np.float32), "zero")
        self._axes = op.constant(np.array([1], np.int64), "axes")
        self._axis = op.constant(np.array([0], np.int64), "axis")

    def write(self, num_kept: Size) -> ir.Value:
        """The loop; int32 [K, 1, 1]."""
        op = self._op
        trips = item(op, num_kept, "trips")
        proceed = op.constant(np.array(True), "proceed")
        cover, taken = (filled_row(op, self._num_tokens, 0, name) for name in ("cover", "taken"))
        body = self._body(op.subgraph("body"))
        *_, chosen = op.multi("Loop", trips, proceed, cover, taken, num_outputs=3, body=body)
        return chosen

    def _body(self, op: GraphWriter) -> ir.Graph:
        """One choice; ``taken`` is 1 for the selected, ``cover`` as in the definition.

        ::

            gram - cover -- Relu -- sum per row -- x importance -- Where(taken) -- lowest id of
                                                                    the largest
        """
        row = [1, axis(self._num_tokens, TOKENS)]
        step = op.input("step", ir.DataType.INT64, [])
        proceed = op.input("proceed", ir.DataType.BOOL, [])
        cover = op.input("cover", ir.DataType.FLOAT, row)
        taken = op.input("taken", ir.DataType.FLOAT, row)
        added = op("Relu", op("Sub", self._gram, cover))
        gains = op("ReduceSum", added, self._axes, keepdims=1)
        scores = op("Mul", op("Transpose", gains, perm=[1, 0]), self._importance)
        open_scores = op("Where", op("Greater", taken, self._zero), self._nothing, scores)
        best = op("Equal", open_scores, op("ReduceMax", open_scores, keepdims=1))
        chosen = self._lowest.write(op, best)
        similar = op("Gather", self._gram, op("Squeeze", chosen, self._axis), axis=0)
        is_chosen = op("Cast", op("Equal", self._lowest.ids, chosen), to=ir.DataType.FLOAT)
        outputs = [
            op("Identity", proceed),
            op("Max", cover, similar),
            op("Max", taken, is_chosen),
            op("Identity", chosen),
        ]
        for output, like in zip(outputs[:3], [proceed, cover, taken], strict=True):
            output.type, output.shape = like.type, like.shape
        outputs[3].type, outputs[3].shape = ir.TensorType(ir.DataType.INT32), ir.Shape([1, 1])
        inputs = [step, proceed, cover, taken]
        return ir.Graph(inputs, outputs, nodes=op.nodes, name="scope_step")
