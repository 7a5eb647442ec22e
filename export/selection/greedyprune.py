"""GreedyPrune: the most salient of N visual tokens that are not alike (arXiv 2506.13166).

Saliency is the cosine between a visual token and the last token of the prompt, both as they
enter decoder layer L. The most salient token is kept, every token whose cosine to it is above
tau is put aside, and so on; where nothing is left, the tokens that were put aside follow by
saliency, so that exactly K are kept. Ties go to the lowest index.

K ends this sequence and takes no other part in it: the order is nested.

The published abstract and reviews of the paper leave open which layer, which states and which
tau it uses, and what happens when candidates run out. Hidden states follow its argument (flow of
information in shallow layers); the default layer is FastV's, taken for want of the
paper's own; the default tau and the filling are those of a third party's re-implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count
from divprune.export.selection.in_llm import InLLMSelector
from divprune.export.selection.ranking import LowestIndex
from divprune.export.selection.similarity import similarity, write_similarity
from divprune.export.selection.sizes import (
    TOKENS,
    Size,
    as_size,
    axis,
    check_sizes,
    dim,
    filled_row,
    ids_below,
    item,
)

__all__ = ["GreedyPrune", "greedy_salient", "salient_regret", "write_greedy_salient"]

_NOTHING = np.float32(-np.finfo(np.float32).max)
_TAKEN, _ASIDE, _OPEN = 0.0, 1.0, 2.0
"""What has become of a token: the next choice is among the highest mark that is left."""


class GreedyPrune(InLLMSelector):
    """Greedy by saliency under a threshold on similarity."""

    name: ClassVar[str] = "greedyprune"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    default_layer: ClassVar[int] = 2
    default_tau: ClassVar[float] = 0.9
    inputs: ClassVar[tuple[str, ...]] = ("visual_states", "last_state")

    def __init__(self, layer: int | None = None, tau: float | None = None) -> None:
        super().__init__(layer)
        self.tau = self.default_tau if tau is None else tau

    @property
    def parameters(self) -> dict[str, Any]:
        """Layer and tau."""
        return {"layer": self.layer, "tau": self.tau}

    def select(
        self, values: Mapping[str, npt.NDArray[Any]], num_tokens: int, num_kept: int
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K] of the kept rows of ``visual_states``, in the order chosen."""
        return greedy_salient(_cosines(values), self.tau, num_kept)

    def regret(
        self,
        values: Mapping[str, npt.NDArray[Any]],
        num_tokens: int,
        order: npt.NDArray[np.int64],
    ) -> float:
        """The least error of the cosines that would make every choice in ``order`` right."""
        return salient_regret(_cosines(values), self.tau, order)

    def write(
        self, op: GraphWriter, values: Mapping[str, ir.Value], num_tokens: Size, num_kept: Size
    ) -> ir.Value:
        """The same as a subgraph: states to int64 [K]."""
        with op.scope(self.name):
            states = op("Concat", values["visual_states"], values["last_state"], axis=0)
            cosines = write_similarity(op, states)
            return write_greedy_salient(op, cosines, self.tau, num_tokens, num_kept)


def _cosines(values: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    return similarity(np.concatenate([values["visual_states"], values["last_state"]]))


def greedy_salient(
    cosines: npt.NDArray[np.float32], tau: float, num_kept: int
) -> npt.NDArray[np.int64]:
    """Choose K of N tokens from cosines [N + 1, N + 1], whose last row is the last text token's.

    Returns:
        int64 [K], no index twice, in the order chosen.

    Raises:
        OptionError: if ``num_kept`` is not in 1..N.
    """
    num_tokens = len(cosines) - 1
    check_count(num_kept, num_tokens)
    saliency = cosines[num_tokens, :num_tokens]
    marks = np.full(num_tokens, _OPEN)
    order = np.empty(num_kept, np.int64)
    for step in range(num_kept):
        candidates = np.where(marks == marks.max(), saliency, _NOTHING)
        token = order[step] = candidates.argmax()  # the first of several
        alike = cosines[token, :num_tokens] > np.float32(tau)
        marks[alike] = np.minimum(marks[alike], _ASIDE)
        marks[token] = _TAKEN
    return order


def salient_regret(
    cosines: npt.NDArray[np.float32], tau: float, order: npt.NDArray[np.int64]
) -> float:
    """The least error of the cosines that would make every choice in ``order`` right.

    A token chosen twice is never right.
    """
    num_tokens = len(cosines) - 1
    saliency = cosines[num_tokens, :num_tokens].astype(np.float64)
    beyond = np.full(num_tokens, -np.inf)  # largest cosine to the chosen, less tau
    left = np.ones(num_tokens, bool)
    regret = 0.0
    for token in order:
        if not left[token]:
            return float("inf")
        ahead = saliency[left] - saliency[token]
        room = -beyond[left]
        # Either it was open, and what is more salient was not; or nothing was open any more.
        as_open = max(beyond[token], np.minimum(ahead, room).max())
        as_filling = max(room.max(), ahead.max())
        regret = max(regret, min(as_open, as_filling))
        left[token] = False
        np.maximum(beyond, cosines[token, :num_tokens] - np.float64(np.float32(tau)), out=beyond)
    return float(regret)


def write_greedy_salient(
    op: GraphWriter, cosines: ir.Value, tau: float, num_tokens: Size, num_kept: Size
) -> ir.Value:
    """Append nodes for ``greedy_salient``: float32 [N + 1, N + 1] to int64 [K].

    ::

        cosines -- columns 0..N-1 --+-- last row: saliency [1, N] --+
                                    |                               |
                                    +--- Loop, K times -------------+-- Cast -- order [K]

    Raises:
        OptionError: if ``num_kept`` is not in 1..N.
    """
    check_sizes(num_kept, num_tokens)
    with op.scope("greedy"):
        lowest = LowestIndex(op, num_tokens)
        columns = ids_below(op, num_tokens, "columns")
        rows = op("Gather", cosines, columns, axis=1, name="rows")
        last = as_size(op, num_tokens, "last_row")
        saliency = op("Gather", rows, last, axis=0, name="saliency")
        constants: dict[str, np.ndarray] = {
            "tau": np.array(tau, np.float32),
            "nothing": np.array(_NOTHING),
            "taken": np.array(_TAKEN, np.float32),
            "aside": np.array(_ASIDE, np.float32),
            "axis": np.array([0], np.int64),
        }
        known = {name: op.constant(value, name) for name, value in constants.items()}
        marks = filled_row(op, num_tokens, _OPEN, "marks")
        trips = item(op, num_kept, "trips")
        proceed = op.constant(np.array(True), "proceed")
        body = _loop_body(op.subgraph("body"), rows, saliency, known, lowest, num_tokens)
        *_, chosen = op.multi("Loop", trips, proceed, marks, num_outputs=2, body=body)
        flat = op("Reshape", chosen, op.constant(np.array([dim(num_kept)], np.int64), "shape"))
        return op("Cast", flat, to=ir.DataType.INT64)


def _loop_body(
    op: GraphWriter,
    rows: ir.Value,
    saliency: ir.Value,
    known: Mapping[str, ir.Value],
    lowest: LowestIndex,
    num_tokens: Size,
) -> ir.Graph:
    """One choice; ``marks`` say of each token whether it is open, put aside or taken.

    ::

        marks --+-- Equal(ReduceMax) -- Where(saliency) -- Equal(ReduceMax) -- lowest --> chosen
                |                                                                |
                +------- Where(rows[chosen] > tau: at most "aside") -- Where(taken) --> marks
    """
    step = op.input("step", ir.DataType.INT64, [])
    proceed = op.input("proceed", ir.DataType.BOOL, [])
    marks = op.input("marks", ir.DataType.FLOAT, [1, axis(num_tokens, TOKENS)])
    open_now = op("Equal", marks, op("ReduceMax", marks, keepdims=1))
    candidates = op("Where", open_now, saliency, known["nothing"])
    best = op("Equal", candidates, op("ReduceMax", candidates, keepdims=1))
    token = lowest.write(op, best)
    row = op("Gather", rows, op("Squeeze", token, known["axis"]), axis=0)
    at_most_aside = op("Min", marks, known["aside"])
    thinned = op("Where", op("Greater", row, known["tau"]), at_most_aside, marks)
    new_marks = op("Where", op("Equal", lowest.ids, token), known["taken"], thinned)
    outputs = [op("Identity", proceed), new_marks, op("Identity", token)]
    for output, like in zip(outputs[:2], [proceed, marks], strict=True):
        output.type, output.shape = like.type, like.shape
    outputs[2].type, outputs[2].shape = ir.TensorType(ir.DataType.INT32), ir.Shape([1, 1])
    return ir.Graph([step, proceed, marks], outputs, nodes=op.nodes, name="greedyprune_step")
