"""LLaVA-PruMerge with a fixed count: the most attended tokens, each with its neighbours.

arXiv 2403.15388, as its authors' code runs it on the tower's features, before the projector,
except for the count. With a = attention of the class token to each token, in the layer that
reads the features (for LLaVA-1.5 the last one), queries and keys taken as one wide head:

- the K - 1 tokens of largest a are kept; ties go to the lowest index;
- to each of them, x_i, is added the sum of a_j x_j over its 32 nearest other tokens j by the
  cosine of their keys in that layer (kept ones may be among them; not normalised);
- one extra token is the sum of a_j x_j over all tokens that were not kept. It counts: K is
  everything that the language model sees.

What was chosen here: the paper's share of kept tokens follows from outliers of a and varies
from picture to picture; the graph needs a fixed one, so K comes from ``--keep``. The authors
hand the tokens over by falling a, the extra one last; here they stand in raster order, and the
extra one stands in the place of the most attended token that was not kept: the last of
``selection_order``. That place is also its position under ``--positions original``. Not nested:
a smaller K moves tokens into the extra one.

Towers without a class token are refused: every part of the definition rests on it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_finite
from divprune.export.selection.mixing import MixWriter
from divprune.export.selection.protocol import Arrays, Values
from divprune.export.selection.ranked import RankedSelector
from divprune.export.selection.similarity import similarity, write_similarity
from divprune.export.selection.sizes import Size, as_size, dim, minus

__all__ = ["PruMerge"]

_NEIGHBOURS = 32


class PruMerge(RankedSelector):
    """K - 1 tokens by attention, with their neighbours, and one for all the others."""

    name: ClassVar[str] = "prumerge"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    inside_llm: ClassVar[bool] = False
    any_size: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("reader_cls_attention", "reader_keys", "patch_features")
    ranked_by: ClassVar[str] = "reader_cls_attention"

    @property
    def parameters(self) -> dict[str, Any]:
        """Number of neighbours merged into each kept token."""
        return {"neighbours": _NEIGHBOURS}

    def mix(self, order: npt.NDArray[np.int64], signals: Arrays) -> npt.NDArray[np.float32]:
        """float32 [K, V] in raster order, from the tokens' features [N, V]."""
        rows = check_finite("tower's features", signals["patch_features"])
        attention = signals["reader_cls_attention"]
        gram = similarity(signals["reader_keys"])
        kept, extra = order[:-1], order[-1]
        weights = np.zeros((len(order), len(rows)), np.float32)
        for row, token in zip(weights, np.sort(order), strict=True):
            if token == extra:
                row[:] = attention
                row[kept] = 0
                continue
            others = np.delete(np.arange(len(rows)), token)
            nearest = others[np.argsort(-gram[token, others], kind="stable")[:_NEIGHBOURS]]
            row[nearest] = attention[nearest]
            row[token] = 1
        mixed: npt.NDArray[np.float32] = weights @ rows
        return mixed

    def write_mix(
        self,
        op: GraphWriter,
        order: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values,
    ) -> ir.Value:
        """The same as a subgraph: weights [K, N] times features [N, V].

        ::

            keys -- similarity of the kept -- nearest [K, N] -- x attention -- + own token --+
                                              not kept [1, N] -- x attention ----------------+
                                          Where(extra row) -- MatMul(features) -- [K, V] <---+
        """
        with op.scope(self.name):
            mix = MixWriter(op, order, num_tokens, num_kept)
            row = op.constant(np.array([1, dim(num_tokens)], np.int64), "row")
            attention = op("Reshape", signals["reader_cls_attention"], row)
            own = op("Mul", self._nearest(op, mix, signals["reader_keys"], num_tokens), attention)
            weights = op("Add", own, mix.chosen)
            extra = mix.last()
            others = op("Mul", self._not_kept(op, mix, extra), attention)
            weights = op("Where", op("Equal", mix.ascending, extra), others, weights)
            return op("MatMul", weights, signals["patch_features"])

    def _nearest(
        self, op: GraphWriter, mix: MixWriter, keys: ir.Value, num_tokens: Size
    ) -> ir.Value:
        """float32 [K, N]: 1 for the nearest other tokens of each kept one, ties to the lowest.

        ``TopK`` says only how similar the last of them is: all that are nearer, and of those
        exactly as near the first ones up to the count.
        """
        count, wanted = self._neighbours(op, num_tokens)
        rows = op("Gather", write_similarity(op, keys), op("Squeeze", mix.ascending, mix.axes))
        nothing = op.constant(np.array(-np.finfo(np.float32).max), "nothing")
        rows = op("Where", op("Equal", mix.ascending, mix.ids), nothing, rows)
        top, _ = op.multi("TopK", rows, count, num_outputs=2, largest=1, sorted=1)
        least = op("ReduceMin", top, mix.axes, keepdims=1)
        nearer = mix.as_float(op("Greater", rows, least))
        as_near = mix.as_float(op("Equal", rows, least))
        room = op("Sub", wanted, op("ReduceSum", nearer, mix.axes, keepdims=1))
        first = mix.as_float(op("LessOrEqual", mix.counted_up_to(as_near), room))
        return op("Add", nearer, op("Mul", as_near, first))

    def _neighbours(self, op: GraphWriter, num_tokens: Size) -> tuple[ir.Value, ir.Value]:
        """How many join a token: int64 [1] for ``TopK``, at least 1, and as it is, float32 [1, 1].

        A token that is alone is found as its own neighbour then, and not wanted.
        """
        if isinstance(num_tokens, int):
            number = min(_NEIGHBOURS, num_tokens - 1)
            count = op.constant(np.array([max(number, 1)], np.int64), "neighbours")
            return count, op.constant(np.array([[number]], np.float32), "wanted")
        others = as_size(op, minus(op, num_tokens, 1, "others"), "others")
        most, one = (op.constant(np.array([n], np.int64), f"at_{n}") for n in (_NEIGHBOURS, 1))
        wanted = op("Min", others, most)
        cell = op("Reshape", wanted, op.constant(np.array([1, 1], np.int64), "cell"))
        return op("Max", wanted, one), op("Cast", cell, to=ir.DataType.FLOAT)

    def _not_kept(self, op: GraphWriter, mix: MixWriter, extra: ir.Value) -> ir.Value:
        """float32 [1, N]: 1 for every token whose place no kept one has, ``extra`` among them."""
        one = op.constant(np.ones((1, 1), np.float32), "one")
        others = op("Sub", one, mix.column_flags(mix.order))
        return op("Add", others, mix.as_float(op("Equal", extra, mix.ids)))
