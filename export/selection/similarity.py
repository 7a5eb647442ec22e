"""Cosine similarities of tokens: all of them at once, or one row after the other.

Rows are what a greedy choice reads (row i: token i against all). ``Gram`` holds the matrix
[N, N], which at 10 000 tokens takes 400 MB; ``RowsOnDemand`` holds the normalised rows and
computes one product of a matrix and a vector a step. The two round differently, by about 1e-7.
Each exists twice, in NumPy and in ONNX.

The subgraphs need opset 18 or later. Their only nodes of another form at opset 17 are
``ReduceL2`` and ``ReduceMax``, whose axes are attributes there.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_finite
from divprune.export.selection.sizes import Size, as_size, item, minus

__all__ = [
    "MAX_GRAM_TOKENS",
    "NOTHING",
    "Gram",
    "GramWriter",
    "RowsOnDemand",
    "RowsOnDemandWriter",
    "SimilarityRows",
    "SimilarityWriter",
    "similarity",
    "unit_rows",
    "write_similarity",
    "write_unit_rows",
]

MAX_GRAM_TOKENS = 8192
"""With more tokens the matrix, 268 MB by then, is not computed."""
NOTHING = np.float32(-np.finfo(np.float32).max)
"""Below every similarity."""
_MIN_NORM = np.float32(1e-12)
_BLOCK = 512
"""Rows compared at once to find each token's nearest other one."""

Floats = npt.NDArray[np.float32]


class SimilarityRows(Protocol):
    """Similarities of N tokens."""

    def __len__(self) -> int:
        """N."""
        ...

    def row(self, token: int) -> Floats:
        """One token against all, float32 [N]."""
        ...

    def nearest(self) -> Floats:
        """Each token's largest similarity to another one, float32 [N]."""
        ...


class Gram:
    """Rows of a matrix float32 [N, N]."""

    def __init__(self, gram: Floats) -> None:
        self._gram = gram

    def __len__(self) -> int:
        return len(self._gram)

    def row(self, token: int) -> Floats:
        """One token against all, float32 [N]."""
        similarities: Floats = self._gram[token]
        return similarities

    def nearest(self) -> Floats:
        """Each token's largest similarity to another one, float32 [N]."""
        others = self._gram.copy()
        np.fill_diagonal(others, NOTHING)
        largest: Floats = others.max(axis=1)
        return largest


class RowsOnDemand:
    """Rows of the same matrix, each computed when it is read, of normalised rows [N, D]."""

    def __init__(self, unit: Floats) -> None:
        self._unit = unit

    def __len__(self) -> int:
        return len(self._unit)

    def row(self, token: int) -> Floats:
        """One token against all, float32 [N]."""
        products: Floats = self._unit @ self._unit[token]
        return products

    def nearest(self) -> Floats:
        """Each token's largest similarity to another one, float32 [N]; by blocks of rows."""
        largest = np.empty(len(self), np.float32)
        for start in range(0, len(self), _BLOCK):
            block = self._unit[start : start + _BLOCK] @ self._unit.T
            rows = np.arange(len(block))
            block[rows, start + rows] = NOTHING
            largest[start : start + _BLOCK] = block.max(axis=1)
        return largest


def unit_rows(features: npt.NDArray[np.generic]) -> Floats:
    """Features [N, D] of any float dtype as rows of length 1, float32.

    Norms are clamped at 1e-12: a zero row stays one.

    Raises:
        NumericalError: if a row holds NaN or Inf, or its norm overflows float32.
    """
    rows = check_finite("visual features", features)
    norms = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    unit: Floats = rows / np.maximum(norms, _MIN_NORM)
    return unit


def similarity(features: npt.NDArray[np.generic]) -> Floats:
    """Cosine similarities float32 [N, N] of features [N, D] of any float dtype.

    A zero row has similarity 0 to every row, itself included.

    Raises:
        NumericalError: if a row holds NaN or Inf, or its norm overflows float32.
    """
    unit = unit_rows(features)
    gram: Floats = unit @ unit.T
    return gram


class SimilarityWriter(Protocol):
    """As ``SimilarityRows``, in a graph; what is made in it is captured by a loop body."""

    def row(self, op: GraphWriter, token: ir.Value) -> ir.Value:
        """One token, int32 [1], against all: float32 [1, N]."""
        ...

    def nearest(self, op: GraphWriter, ids: ir.Value) -> ir.Value:
        """Each token's largest similarity to another one, float32 [1, N].

        Args:
            op: Of the graph.
            ids: The numbers of the tokens, int32 [1, N].
        """
        ...


class GramWriter:
    """Rows of a matrix float32 [N, N]."""

    def __init__(self, gram: ir.Value) -> None:
        self._gram = gram

    def row(self, op: GraphWriter, token: ir.Value) -> ir.Value:
        """One token, int32 [1], against all: float32 [1, N]."""
        return op("Gather", self._gram, token, axis=0)

    def nearest(self, op: GraphWriter, ids: ir.Value) -> ir.Value:
        """Each token's largest similarity to another one, float32 [1, N].

        ::

            ids --+-- Transpose --+
                  |               |
                  +---- Equal ----+-- Where(-max, gram) -- ReduceMax per row -- Transpose
        """
        on_diagonal = op("Equal", op("Transpose", ids, perm=[1, 0]), ids)
        others = op("Where", on_diagonal, op.constant(np.array(NOTHING), "nothing"), self._gram)
        axes = op.constant(np.array([1], np.int64), "axes")
        largest = op("ReduceMax", others, axes, keepdims=1)
        return op("Transpose", largest, perm=[1, 0])


class RowsOnDemandWriter:
    """Rows of the same matrix, each computed when it is read, of normalised rows [N, D]."""

    def __init__(self, unit: ir.Value, num_tokens: Size) -> None:
        self._unit, self._num_tokens = unit, num_tokens

    def row(self, op: GraphWriter, token: ir.Value) -> ir.Value:
        """One token, int32 [1], against all: float32 [1, N]."""
        return op("Gemm", op("Gather", self._unit, token, axis=0), self._unit, transB=1)

    def nearest(self, op: GraphWriter, ids: ir.Value) -> ir.Value:
        """Each token's largest similarity to another one, float32 [1, N].

        A loop over blocks of rows. The last block is filled up with the last row, and what
        comes of that is cut off.
        """
        block = op.constant(np.array(_BLOCK, np.int64), "block")
        known = {
            "block": block,
            "offsets": op.constant(np.arange(_BLOCK, dtype=np.int64), "offsets"),
            "last": as_size(op, minus(op, self._num_tokens, 1, "less"), "last_row"),
            "column": op.constant(np.array([_BLOCK, 1], np.int64), "column"),
            "nothing": op.constant(np.array(NOTHING), "nothing"),
            "axes": op.constant(np.array([1], np.int64), "axes"),
            "ids": ids,
        }
        proceed = op.constant(np.array(True), "proceed")
        body = self._block_body(op.subgraph("blocks"), known)
        *_, parts = op.multi("Loop", self._trips(op, block), proceed, num_outputs=1, body=body)
        row = op("Reshape", parts, op.constant(np.array([1, -1], np.int64), "row"))
        start, axis = (op.constant(np.array([n], np.int64), f"from_{n}") for n in (0, 1))
        return op("Slice", row, start, as_size(op, self._num_tokens, "end"), axis)

    def _trips(self, op: GraphWriter, block: ir.Value) -> ir.Value:
        if isinstance(self._num_tokens, int):
            return op.constant(np.array(-(-self._num_tokens // _BLOCK), np.int64), "trips")
        filled = minus(op, self._num_tokens, 1 - _BLOCK, "filled")
        return op("Div", item(op, filled, "rows"), block, name="trips")

    def _block_body(self, op: GraphWriter, known: dict[str, ir.Value]) -> ir.Graph:
        step = op.input("step", ir.DataType.INT64, [])
        proceed = op.input("proceed", ir.DataType.BOOL, [])
        start = op("Mul", step, known["block"])
        rows = op("Min", op("Add", known["offsets"], start), known["last"])
        alike = op("Gemm", op("Gather", self._unit, rows, axis=0), self._unit, transB=1)
        column = op("Cast", op("Reshape", rows, known["column"]), to=ir.DataType.INT32)
        others = op("Where", op("Equal", column, known["ids"]), known["nothing"], alike)
        largest = op("ReduceMax", others, known["axes"], keepdims=1)
        outputs = [op("Identity", proceed), largest]
        outputs[0].type, outputs[0].shape = proceed.type, proceed.shape
        largest.type, largest.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([_BLOCK, 1])
        return ir.Graph([step, proceed], outputs, nodes=op.nodes, name="nearest_of_block")


def write_unit_rows(op: GraphWriter, features: ir.Value) -> ir.Value:
    """Append nodes for ``unit_rows``: features [N, D] to float32 [N, D].

    ::

        features -- Cast (unless float32) --+-- ReduceL2 -- Max(1e-12) --+
                                            |                            |
                                            +----------- Div ------------+-- [N, D]
    """
    if features.dtype != ir.DataType.FLOAT:
        features = op("Cast", features, to=ir.DataType.FLOAT)
    axes = op.constant(np.array([1], np.int64), "axes")
    norms = op("ReduceL2", features, axes, keepdims=1)
    floor = op.constant(np.array(_MIN_NORM), "min_norm")
    return op("Div", features, op("Max", norms, floor))


def write_similarity(op: GraphWriter, features: ir.Value) -> ir.Value:
    """Append nodes for ``similarity``: features [N, D] to float32 [N, N].

    ::

        unit rows --+-- Transpose --+
                    |               |
                    +--- MatMul ----+-- [N, N]
    """
    with op.scope("similarity"):
        unit = write_unit_rows(op, features)
        return op("MatMul", unit, op("Transpose", unit, perm=[1, 0]))
