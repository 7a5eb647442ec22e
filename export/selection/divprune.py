"""DivPrune: keep the K of N visual tokens that lie farthest apart (arXiv 2503.02175).

Features are compared by cosine similarity. The first token is the one whose most similar
*other* token is least similar; then follows, again and again, the unselected token whose
largest similarity to the selected ones is smallest. Ties go to the lowest index.

Each half exists twice, in NumPy and in ONNX, and both halves can be used alone: given the
same similarity matrix the two greedy halves choose the same indices, always. Only rows of
that matrix are read (row i: token i against all others), so rounding that leaves it
slightly unsymmetric changes nothing.

The subgraph needs opset 18 or later. Its only nodes of another form at opset 17 are
``ReduceL2`` and ``ReduceMax``, whose axes are attributes there.
"""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES, Arrays, Selector, Values
from divprune.plugins.node import NAMESPACE, OP_TYPE, VERSION
from divprune.runtime.errors import NumericalError

__all__ = [
    "DivPrune",
    "greedy_max_min",
    "largest_regret",
    "similarity",
    "write_greedy_max_min",
    "write_greedy_max_min_plugin",
    "write_similarity",
]

_MIN_NORM = np.float32(1e-12)
# Finite and above every similarity: a selected token is never the minimum again, and no
# later arithmetic can turn the mark into NaN.
_TAKEN = np.finfo(np.float32).max
_NOTHING = -_TAKEN


class DivPrune(Selector):
    """Greedy max-min diversity over the projected features."""

    name: ClassVar[str] = "divprune"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = False

    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K] of the kept rows of features [N, D], in the order chosen."""
        return greedy_max_min(similarity(features), num_kept)

    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """By how much a choice in ``order`` exceeded the least similarity open to it, at most."""
        return largest_regret(similarity(features), order)

    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: int,
        num_kept: int,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """The same as a subgraph: features [N, D] to int64 [K]."""
        with op.scope(self.name):
            gram = write_similarity(op, features)
            return write_greedy_max_min(op, gram, num_tokens, num_kept)

    def write_with_plugin(
        self, op: GraphWriter, features: ir.Value, num_tokens: int, num_kept: int
    ) -> ir.Value:
        """The same with the plugin node for the loop."""
        with op.scope(self.name):
            gram = write_similarity(op, features)
            return write_greedy_max_min_plugin(op, gram, num_tokens, num_kept)


def similarity(features: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Cosine similarities float32 [N, N] of features [N, D] of any float dtype.

    Norms are clamped at 1e-12: a zero row has similarity 0 to every row, itself included.

    Raises:
        NumericalError: if a row holds NaN or Inf, or its norm overflows float32.
    """
    rows = check_finite("visual features", features)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    unit = rows / np.maximum(norms, _MIN_NORM)
    gram: npt.NDArray[np.float32] = unit @ unit.T
    return gram


def greedy_max_min(gram: npt.NDArray[np.float32], num_kept: int) -> npt.NDArray[np.int64]:
    """Greedy max-min choice of K tokens from their similarities [N, N].

    Returns:
        int64 [K], no index twice, in the order chosen; the first k of them are the choice
        of k tokens.

    Raises:
        NumericalError: if a similarity is NaN or +Inf.
        OptionError: if ``num_kept`` is not in 1..N.
    """
    num_tokens = len(gram)
    check_count(num_kept, num_tokens)
    others = gram.copy()
    np.fill_diagonal(others, _NOTHING)
    nearest = others.max(axis=1)
    if not np.isfinite(nearest).all():
        raise NumericalError("The similarities of the visual tokens hold NaN or Inf")
    order = np.empty(num_kept, np.int64)
    order[0] = nearest.argmin()  # argmin returns the first of several minima
    largest = np.full(num_tokens, _NOTHING)  # each token's largest similarity to the selected
    for step in range(1, num_kept):
        last = order[step - 1]
        np.maximum(largest, gram[last], out=largest)
        largest[last] = _TAKEN
        order[step] = largest.argmin()
    return order


def largest_regret(gram: npt.NDArray[np.float32], order: npt.NDArray[np.int64]) -> float:
    """The largest excess of a choice in ``order`` over the best one open at its step.

    A token chosen twice is never worth it: its excess is beyond every similarity.
    """
    others = gram.copy()
    np.fill_diagonal(others, _NOTHING)
    score = others.max(axis=1)
    regret = float(score[order[0]] - score.min())
    score = gram[order[0]].copy()
    for last, token in itertools.pairwise(order):
        np.maximum(score, gram[last], out=score)
        score[last] = _TAKEN
        regret = max(regret, float(score[token] - score.min()))
    return regret


def write_similarity(op: GraphWriter, features: ir.Value) -> ir.Value:
    """Append nodes for ``similarity``: features [N, D] to float32 [N, N].

    ::

        features -- Cast (unless float32) --+-- ReduceL2 -- Max(1e-12) --+
                                            |                            |
                                            +----------- Div ------------+
                                                          |
                                                         unit --+-- Transpose --+
                                                                |               |
                                                                +--- MatMul ----+-- [N, N]
    """
    with op.scope("similarity"):
        if features.dtype != ir.DataType.FLOAT:
            features = op("Cast", features, to=ir.DataType.FLOAT)
        axes = op.constant(np.array([1], np.int64), "axes")
        norms = op("ReduceL2", features, axes, keepdims=1)
        unit = op("Div", features, op("Max", norms, op.constant(np.array(_MIN_NORM), "min_norm")))
        return op("MatMul", unit, op("Transpose", unit, perm=[1, 0]))


def write_greedy_max_min(
    op: GraphWriter, gram: ir.Value, num_tokens: int, num_kept: int
) -> ir.Value:
    """Append nodes for ``greedy_max_min``: float32 [N, N] to int64 [K].

    ::

        gram --+-- seed [1, 1] ---+--------------------------------+
               |                  |                                |
               +-- Loop, K - 1 times -- chosen [K - 1, 1, 1] --- Concat -- Cast -- order [K]

    Raises:
        OptionError: if ``num_kept`` is not in 1..N.
    """
    check_count(num_kept, num_tokens)
    with op.scope("greedy"):
        greedy = _GreedyWriter(op, gram, num_tokens)
        order = seed = greedy.seed()
        if num_kept > 1:
            order = op("Concat", seed, greedy.following(seed, num_kept - 1), axis=0)
        flat = op("Reshape", order, op.constant(np.array([num_kept], np.int64), "shape"))
        return op("Cast", flat, to=ir.DataType.INT64)


def write_greedy_max_min_plugin(
    op: GraphWriter, gram: ir.Value, num_tokens: int, num_kept: int
) -> ir.Value:
    """Append ``divprune::GreedyMaxMin``: float32 [N, N] to int64 [K], one image.

    ::

        gram --+-- seed -- Reshape [1] --------+
               |                               |
               +-- Reshape [1, N, N] -- GreedyMaxMin [1, K] -- Reshape -- Cast -- order [K]

    Raises:
        OptionError: if ``num_kept`` is not in 1..N.
    """
    check_count(num_kept, num_tokens)
    with op.scope("greedy"):
        seed = _GreedyWriter(op, gram, num_tokens).seed()
        batch = op.constant(np.array([1, num_tokens, num_tokens], np.int64), "batch")
        order = op(
            OP_TYPE,
            op("Reshape", gram, batch, name="gram"),
            op("Reshape", seed, op.constant(np.array([1], np.int64), "one"), name="first"),
            domain=NAMESPACE,
            plugin_namespace=NAMESPACE,
            plugin_version=VERSION,
            num_kept=num_kept,
            aot=1,  # from TensorRT 10.9 on the kernel becomes a part of the engine
        )
        flat = op("Reshape", order, op.constant(np.array([num_kept], np.int64), "shape"))
        return op("Cast", flat, to=ir.DataType.INT64)


class _GreedyWriter:
    """The pieces of the greedy subgraph over one similarity matrix.

    Everything has rank 2 and indices are int32, which TensorRT needs or prefers. The loop
    body owns no constants: it captures those of the outer graph by name, and ``gram`` too.
    """

    def __init__(self, op: GraphWriter, gram: ir.Value, num_tokens: int) -> None:
        self._op = op
        self._gram = gram
        self._num_tokens = num_tokens
        self._ids = op.constant(np.arange(num_tokens, dtype=np.int32)[np.newaxis], "ids")
        self._beyond = op.constant(np.array([[num_tokens]], np.int32), "beyond")
        self._last_id = op.constant(np.array([[num_tokens - 1]], np.int32), "last_id")

    def seed(self) -> ir.Value:
        """The token whose most similar other token is least similar, int32 [1, 1].

        ::

            ids --+-- Transpose --+
                  |               |
                  +---- Equal ----+-- Where(-max, gram) -- ReduceMax per row -- lowest
        """
        op = self._op
        with op.scope("seed"):
            on_diagonal = op("Equal", op("Transpose", self._ids, perm=[1, 0]), self._ids)
            nothing = op.constant(np.array(_NOTHING), "nothing")
            others = op("Where", on_diagonal, nothing, self._gram)
            axes = op.constant(np.array([1], np.int64), "axes")
            nearest = op("ReduceMax", others, axes, keepdims=1)
            return self._lowest(op, op("Transpose", nearest, perm=[1, 0]))

    def following(self, seed: ir.Value, count: int) -> ir.Value:
        """The ``count`` tokens that follow the seed, int32 [count, 1]."""
        op = self._op
        trips = op.constant(np.array(count, np.int64), "trips")
        proceed = op.constant(np.array(True), "proceed")
        largest = op.constant(np.full((1, self._num_tokens), _NOTHING), "largest")
        taken = op.constant(np.array(_TAKEN), "taken")
        axis = op.constant(np.array([0], np.int64), "axis")
        body = self._body(op.subgraph("body"), taken, axis)
        *_, chosen = op.multi("Loop", trips, proceed, largest, seed, num_outputs=3, body=body)
        return op("Reshape", chosen, op.constant(np.array([count, 1], np.int64), "shape"))

    def _body(self, op: GraphWriter, taken: ir.Value, axis: ir.Value) -> ir.Graph:
        """One choice; ``largest`` is each token's largest similarity to the selected.

        ::

            largest [1, N] -------------- Max -- Where(max) --+-------------> largest
                                           |       |          |
            last [1, 1] --+-- gram[last] --+       |       lowest --+-------> last
                          |                        |                |
                          +-- Equal(ids) ----------+             Identity --> chosen
        """
        step = op.input("step", ir.DataType.INT64, [])
        proceed = op.input("proceed", ir.DataType.BOOL, [])
        largest = op.input("largest", ir.DataType.FLOAT, [1, self._num_tokens])
        last = op.input("last", ir.DataType.INT32, [1, 1])
        row = op("Gather", self._gram, op("Squeeze", last, axis), axis=0)
        is_last = op("Equal", self._ids, last)
        new_largest = op("Where", is_last, taken, op("Max", largest, row))
        new_last = self._lowest(op, new_largest)
        chosen = op("Identity", new_last)
        inputs = [step, proceed, largest, last]
        outputs = [op("Identity", proceed), new_largest, new_last, chosen]
        for output, like in zip(outputs, [proceed, largest, last, last], strict=True):
            output.type, output.shape = like.type, like.shape
        return ir.Graph(inputs, outputs, nodes=op.nodes, name="divprune_step")

    def _lowest(self, op: GraphWriter, values: ir.Value) -> ir.Value:
        """The lowest index of the minimum of float32 [1, N], as int32 [1, 1].

        ::

            values --+-- ReduceMin --+
                     |               |
                     +---- Equal ----+-- Where(ids, N) -- ReduceMin -- Min(N - 1)

        Not ``ArgMin``, whose choice among equal values TensorRT leaves open. Nothing equals
        a NaN minimum; the last ``Min`` keeps even that inside the range.
        """
        is_minimum = op("Equal", values, op("ReduceMin", values, keepdims=1))
        candidates = op("Where", is_minimum, self._ids, self._beyond)
        return op("Min", op("ReduceMin", candidates, keepdims=1), self._last_id)
