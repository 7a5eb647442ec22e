"""DivPrune: keep the K of N visual tokens that lie farthest apart (arXiv 2503.02175).

Features are compared by cosine similarity. The first token is the one whose most similar
*other* token is least similar; then follows, again and again, the unselected token whose
largest similarity to the selected ones is smallest. Ties go to the lowest index.

The order comes with a guarantee, its *cover*: after k choices every token that is left has a
similarity of at least c_k to some selected one, c_k <= c_(k+1), and 1 once nothing is left.

Each half exists twice, in NumPy and in ONNX, and both halves can be used alone: given the
same similarity matrix the two greedy halves choose the same indices, always. Only rows of
that matrix are read (row i: token i against all others), so rounding that leaves it
slightly unsymmetric changes nothing.

With more than ``MAX_GRAM_TOKENS`` tokens there is no matrix: each row is computed when it is
read. The plugin, whose kernel reads the matrix, goes up to its own limit with it.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.export.selection.similarity import (
    MAX_GRAM_TOKENS,
    NOTHING,
    Gram,
    GramWriter,
    RowsOnDemand,
    RowsOnDemandWriter,
    SimilarityRows,
    SimilarityWriter,
    similarity,
    unit_rows,
    write_similarity,
    write_unit_rows,
)
from divprune.export.selection.sizes import (
    TOKENS,
    Size,
    axis,
    check_sizes,
    dim,
    filled_row,
    int32_cell,
    item,
    minus,
    row_ids,
)
from divprune.plugins.node import NAMESPACE, OP_TYPE, VERSION
from divprune.runtime.errors import NumericalError

__all__ = [
    "Choice",
    "DivPrune",
    "choose_max_min",
    "greedy_max_min",
    "largest_regret",
    "similarity",
    "write_greedy_max_min",
    "write_greedy_max_min_plugin",
    "write_similarity",
]

# Finite and above every similarity: a selected token is never the minimum again, and no
# later arithmetic can turn the mark into NaN.
_TAKEN = np.finfo(np.float32).max
_ALL_COVERED = np.float32(1)


class Choice(NamedTuple):
    """Selected tokens int64 [K] in the order chosen, and the cover float32 [K] after each."""

    order: npt.NDArray[np.int64]
    cover: npt.NDArray[np.float32]


class DivPrune(Selector):
    """Greedy max-min diversity over the projected features."""

    name: ClassVar[str] = "divprune"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = False
    any_size: ClassVar[bool] = True
    covers: ClassVar[bool] = True

    @property
    def parameters(self) -> dict[str, Any]:
        """That rows of similarities are computed on demand, where N may be too large."""
        return {"similarities": "rows on demand"} if self._on_demand(0) else {}

    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K] of the kept rows of features [N, D], in the order chosen."""
        return self.select_covered(features, num_kept, signals)[0]

    def select_covered(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The same with the cover float32 [K] after each choice."""
        return choose_max_min(self._rows(features), num_kept)

    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """Largest excess of a choice in ``order`` over the smallest similarity available."""
        return largest_regret(self._rows(features), order)

    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The same as a subgraph: features [N, D] to int64 [K]."""
        return self.write_covered(op, features, num_tokens, num_kept, signals)[0]

    def write_covered(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> tuple[ir.Value, ir.Value]:
        """The same with the cover, float32 [K]."""
        check_sizes(num_kept, num_tokens)
        with op.scope(self.name):
            rows: SimilarityWriter
            if self._on_demand(num_tokens if isinstance(num_tokens, int) else 0):
                rows = RowsOnDemandWriter(write_unit_rows(op, features), num_tokens)
            else:
                rows = GramWriter(write_similarity(op, features))
            return write_greedy_max_min(op, rows, num_tokens, num_kept)

    def write_start(
        self, op: GraphWriter, features: ir.Value, num_tokens: Size
    ) -> tuple[ir.Value, ir.Value]:
        """What the kernel reads: similarities float32 [N, N] and the first token int32 [1, 1]."""
        with op.scope(self.name):
            gram = write_similarity(op, features)
            with op.scope("greedy"):
                return gram, _GreedyWriter(op, GramWriter(gram), num_tokens).seed()

    def write_with_plugin(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        kept_slots: ir.Value | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """The same with the plugin node for the loop."""
        start = self.write_start(op, features, num_tokens)
        most = self.setting.max_tokens
        with op.scope(self.name):
            return write_greedy_max_min_plugin(op, start, num_tokens, num_kept, kept_slots, most)

    def _on_demand(self, num_tokens: int) -> bool:
        return (self.setting.max_tokens or num_tokens) > MAX_GRAM_TOKENS

    def _rows(self, features: npt.NDArray[np.generic]) -> SimilarityRows:
        if self._on_demand(len(features)):
            return RowsOnDemand(unit_rows(features))
        return Gram(similarity(features))


def choose_max_min(rows: SimilarityRows, num_kept: int) -> Choice:
    """Greedy max-min choice of K of N tokens.

    Returns:
        No index twice; the first k are the choice, and the cover, of k tokens.

    Raises:
        NumericalError: if a similarity is NaN or +Inf.
        OptionError: if ``num_kept`` is not in 1..N.
    """
    num_tokens = len(rows)
    check_count(num_kept, num_tokens)
    nearest = rows.nearest()
    if not np.isfinite(nearest).all():
        raise NumericalError("The similarities of the visual tokens hold NaN or Inf")
    order, cover = np.empty(num_kept, np.int64), np.empty(num_kept, np.float32)
    token = nearest.argmin()  # argmin returns the first of several minima
    largest = np.full(num_tokens, NOTHING)  # each token's largest similarity to the selected
    for step in range(num_kept):
        order[step] = token
        np.maximum(largest, rows.row(int(token)), out=largest)
        largest[token] = _TAKEN
        token = largest.argmin()
        cover[step] = min(largest[token], _ALL_COVERED)
    return Choice(order, cover)


def greedy_max_min(gram: npt.NDArray[np.float32], num_kept: int) -> npt.NDArray[np.int64]:
    """Greedy max-min choice of K tokens from their similarities [N, N].

    Returns:
        int64 [K], no index twice, in the order chosen; the first k of them are the choice
        of k tokens.

    Raises:
        NumericalError: if a similarity is NaN or +Inf.
        OptionError: if ``num_kept`` is not in 1..N.
    """
    return choose_max_min(Gram(gram), num_kept).order


def largest_regret(rows: SimilarityRows, order: npt.NDArray[np.int64]) -> float:
    """The largest excess of a choice in ``order`` over the best one open at its step.

    A token chosen twice is never worth it: its excess is beyond every similarity.
    """
    score = rows.nearest()
    regret = float(score[order[0]] - score.min())
    score = np.full(len(rows), NOTHING)
    for last, token in itertools.pairwise(order):
        np.maximum(score, rows.row(int(last)), out=score)
        score[last] = _TAKEN
        regret = max(regret, float(score[token] - score.min()))
    return regret


def write_greedy_max_min(
    op: GraphWriter, rows: SimilarityWriter, num_tokens: Size, num_kept: Size
) -> tuple[ir.Value, ir.Value]:
    """Append nodes for ``choose_max_min``: the order int64 [K] and the cover float32 [K].

    ::

        rows -- nearest -- lowest id of the smallest: the first token [1, 1]
                                |
                               Loop, K times --+-- chosen [K, 1, 1] -- Reshape -- Cast -- order
                                               +-- least  [K, 1, 1] -- Reshape -- cover

    Raises:
        OptionError: if ``num_kept`` is not in 1..N.
    """
    check_sizes(num_kept, num_tokens)
    with op.scope("greedy"):
        greedy = _GreedyWriter(op, rows, num_tokens)
        chosen, cover = greedy.choices(greedy.seed(), num_kept)
        shape = op.constant(np.array([dim(num_kept)], np.int64), "shape")
        order = op("Cast", op("Reshape", chosen, shape), to=ir.DataType.INT64)
        return order, op("Reshape", cover, shape, name="cover")


def write_greedy_max_min_plugin(
    op: GraphWriter,
    start: tuple[ir.Value, ir.Value],
    num_tokens: Size,
    num_kept: Size,
    kept_slots: ir.Value | None = None,
    max_tokens: int | None = None,
) -> tuple[ir.Value, ir.Value]:
    """Append ``divprune::GreedyMaxMin``: float32 [N, N] to int64 [K] and float32 [K], one image.

    ::

        seed [1, 1] -- Add(zeros [1, K]) --+
                                           |
        gram -- Unsqueeze [1, N, N] -- GreedyMaxMin --+-- [1, K] -- Cast -- order [K]
                                                      +-- [1, K] -- cover [K]

    Args:
        op: Of the graph.
        start: Similarities and the first token.
        num_tokens: N.
        num_kept: K.
        kept_slots: int32 [K], where K varies.
        max_tokens: The largest N, where it varies.

    Raises:
        OptionError: if ``num_kept`` is not in 1..N.
    """
    check_sizes(num_kept, num_tokens)
    if isinstance(num_tokens, int):
        max_tokens = num_tokens
    if max_tokens is None:
        raise ValueError("the largest number of visual tokens is not set")
    gram, seed = start
    with op.scope("greedy"):
        batch = op.constant(np.array([0], np.int64), "batch")
        chosen, cover = op.multi(
            OP_TYPE,
            op("Unsqueeze", gram, batch, name="gram"),
            op("Add", seed, _zeros(op, num_kept, kept_slots, batch), name="first"),
            num_outputs=2,
            domain=NAMESPACE,
            plugin_namespace=NAMESPACE,
            plugin_version=VERSION,
            max_tokens=max_tokens,
            aot=1,  # from TensorRT 10.9 on the kernel becomes a part of the engine
        )
        shape = op.constant(np.array([dim(num_kept)], np.int64), "shape")
        order = op("Cast", op("Reshape", chosen, shape), to=ir.DataType.INT64)
        return order, op("Reshape", cover, shape, name="cover")


def _zeros(
    op: GraphWriter, num_kept: Size, kept_slots: ir.Value | None, batch: ir.Value
) -> ir.Value:
    """int32 [1, K] of zeros; from the input itself, so that its length is plain to see."""
    if isinstance(num_kept, int):
        return op.constant(np.zeros((1, num_kept), np.int32), "zeros")
    row = op("Unsqueeze", kept_slots, batch)
    return op("Mul", row, op.constant(np.zeros((1, 1), np.int32), "zero"), name="zeros")


class _GreedyWriter:
    """The pieces of the greedy subgraph.

    Everything has rank 2 and indices are int32, which TensorRT needs or prefers. The loop
    body owns no constants: it captures those of the outer graph by name, and ``rows`` too.
    The lowest index is spelled out instead of left to ``ArgMin``, whose choice among equal
    values TensorRT leaves open.
    """

    def __init__(self, op: GraphWriter, rows: SimilarityWriter, num_tokens: Size) -> None:
        self._op = op
        self._rows = rows
        self._num_tokens = num_tokens
        self._ids = row_ids(op, num_tokens)
        self._beyond = int32_cell(op, num_tokens, "beyond")
        self._last_id = int32_cell(op, minus(op, num_tokens, 1, "last"), "last_id")

    def seed(self) -> ir.Value:
        """The token whose most similar other token is least similar, int32 [1, 1]."""
        op = self._op
        with op.scope("seed"):
            nearest = self._rows.nearest(op, self._ids)
            return self._lowest_of(op, nearest, op("ReduceMin", nearest, keepdims=1))

    def choices(self, seed: ir.Value, num_kept: Size) -> tuple[ir.Value, ir.Value]:
        """K tokens from the seed on, int32 [K, 1, 1], and the cover, float32 [K, 1, 1]."""
        op = self._op
        trips = item(op, num_kept, "trips")
        proceed = op.constant(np.array(True), "proceed")
        largest = filled_row(op, self._num_tokens, float(NOTHING), "largest")
        constants = {
            "taken": op.constant(np.array(_TAKEN), "taken"),
            "axis": op.constant(np.array([0], np.int64), "axis"),
            "all_covered": op.constant(np.array([[_ALL_COVERED]]), "all_covered"),
        }
        body = self._body(op.subgraph("body"), constants)
        *_, chosen, cover = op.multi(
            "Loop", trips, proceed, largest, seed, num_outputs=4, body=body
        )
        return chosen, cover

    def _body(self, op: GraphWriter, known: dict[str, ir.Value]) -> ir.Graph:
        """One choice; ``largest`` is each token's largest similarity to the selected.

        ::

            largest [1, N] --------------- Max -- Where(max) --+-- lowest id of the least --> next
                                            |       |          |
            next [1, 1] --+-- rows[next] ---+       |          +-- least, at most 1 --> cover
                          |                         |          +--> largest
                          +-- Equal(ids) -----------+
                          +-- Identity --> chosen
        """
        step = op.input("step", ir.DataType.INT64, [])
        proceed = op.input("proceed", ir.DataType.BOOL, [])
        largest = op.input("largest", ir.DataType.FLOAT, [1, axis(self._num_tokens, TOKENS)])
        token = op.input("next", ir.DataType.INT32, [1, 1])
        row = self._rows.row(op, op("Squeeze", token, known["axis"]))
        is_chosen = op("Equal", self._ids, token)
        new_largest = op("Where", is_chosen, known["taken"], op("Max", largest, row))
        least = op("ReduceMin", new_largest, keepdims=1)
        next_token = self._lowest_of(op, new_largest, least)
        cover = op("Min", least, known["all_covered"])
        outputs = [op("Identity", proceed), new_largest, next_token, op("Identity", token), cover]
        for output, like in zip(outputs, [proceed, largest, token, token], strict=False):
            output.type, output.shape = like.type, like.shape
        cover.type, cover.shape = largest.type, token.shape
        inputs = [step, proceed, largest, token]
        return ir.Graph(inputs, outputs, nodes=op.nodes, name="divprune_step")

    def _lowest_of(self, op: GraphWriter, values: ir.Value, least: ir.Value) -> ir.Value:
        """The lowest index at which float32 [1, N] has its minimum, as int32 [1, 1].

        Nothing equals a NaN minimum; the index is in range even then.
        """
        candidates = op("Where", op("Equal", values, least), self._ids, self._beyond)
        return op("Min", op("ReduceMin", candidates, keepdims=1), self._last_id)
