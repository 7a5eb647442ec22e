"""FastV: the visual tokens that the last token of the prompt attends to most (arXiv 2403.06764).

What counts is the attention of layer L - 1, after its softmax, mean over heads, in the row of
the last token. Fused attention returns no weights, so that one row is computed again from its
query and the cached keys, in float32. Ties go to the lowest index; the order is nested.

The default layer is the authors' (K = 2 in their code).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.in_llm import InLLMSelector
from divprune.export.selection.ranking import (
    highest_first,
    ranking_regret,
    write_highest_first,
)
from divprune.export.selection.sizes import Size, check_sizes, dim

__all__ = ["FastV", "last_token_attention", "write_last_token_attention"]

_NOTHING = np.float32(-np.finfo(np.float32).max)


class FastV(InLLMSelector):
    """The largest attention of the last token in the layer before."""

    name: ClassVar[str] = "fastv"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    default_layer: ClassVar[int] = 2
    inputs: ClassVar[tuple[str, ...]] = ("last_query", "keys", "visual_slots", "num_slots")

    def select(
        self, values: Mapping[str, npt.NDArray[Any]], num_tokens: int, num_kept: int
    ) -> npt.NDArray[np.int64]:
        """Indices int64 [K] of the tokens, the most attended first."""
        check_count(num_kept, num_tokens)
        return highest_first(last_token_attention(values), num_kept)

    def regret(
        self,
        values: Mapping[str, npt.NDArray[Any]],
        num_tokens: int,
        order: npt.NDArray[np.int64],
    ) -> float:
        """The largest shortfall of a choice, as a part of the largest attention."""
        return ranking_regret(last_token_attention(values), order)

    def write(
        self, op: GraphWriter, values: Mapping[str, ir.Value], num_tokens: Size, num_kept: Size
    ) -> ir.Value:
        """The same as a subgraph: query and keys to int64 [K]."""
        check_sizes(num_kept, num_tokens)
        with op.scope(self.name):
            attention = write_last_token_attention(op, values)
            order = write_highest_first(op, attention, num_tokens, num_kept)
            flat = op("Reshape", order, op.constant(np.array([dim(num_kept)], np.int64), "shape"))
            return op("Cast", flat, to=ir.DataType.INT64)


def last_token_attention(values: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
    """What the last token gives each of the N tokens in ``visual_slots``: float32 [N].

    Raises:
        NumericalError: if the query or a filled slot holds NaN or Inf.
    """
    num_slots = int(values["num_slots"][0])
    _, num_kv_heads, _, head_dim = values["keys"].shape
    filled = values["keys"][0, :, :num_slots].reshape(-1, head_dim)
    keys = check_finite("keys", filled).reshape(num_kv_heads, num_slots, head_dim)
    query = check_finite("query", values["last_query"].reshape(-1, head_dim))
    groups = query.reshape(num_kv_heads, -1, head_dim)
    scores = groups @ keys.transpose(0, 2, 1) * np.float32(head_dim**-0.5)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mean: npt.NDArray[np.float32] = weights.reshape(-1, num_slots).mean(axis=0)
    return np.take(mean, values["visual_slots"])


def write_last_token_attention(op: GraphWriter, values: Mapping[str, ir.Value]) -> ir.Value:
    """Append nodes for ``last_token_attention``; returns float32 [1, N].

    Slots beyond ``num_slots`` are masked, not cut off: shapes are static where the cache's is.

    ::

        last_query -- [KV, heads / KV, D] -- MatMul(keys^T) * scale -- Where(slot < num_slots)
            -- Softmax -- mean over heads -- columns visual_slots
    """
    shape = values["keys"].shape
    assert shape is not None
    _, num_kv_heads, _, head_dim = shape
    assert isinstance(num_kv_heads, int)
    assert isinstance(head_dim, int)
    with op.scope("attention"):
        grouped = np.array([num_kv_heads, -1, head_dim], np.int64)
        query = op("Reshape", values["last_query"], op.constant(grouped, "grouped"))
        per_head = np.array([num_kv_heads, -1, head_dim], np.int64)
        keys = op("Reshape", values["keys"], op.constant(per_head, "per_head"))
        products = op("MatMul", query, op("Transpose", keys, perm=[0, 2, 1]))
        scale = op.constant(np.array(head_dim**-0.5, np.float32), "scale")
        filled = op("Less", _slots(op, values["keys"]), values["num_slots"])
        nothing = op.constant(np.array(_NOTHING), "nothing")
        weights = op("Softmax", op("Where", filled, op("Mul", products, scale), nothing), axis=-1)
        num_heads = _last_size(values["last_query"]) // head_dim
        rows = op("Reshape", weights, op.constant(np.array([num_heads, -1]), "heads"))
        # As a product: the axes of ReduceMean are an attribute in some opsets, an input in others.
        share = op.constant(np.full((1, num_heads), 1 / num_heads, np.float32), "share")
        return op("Gather", op("MatMul", share, rows), values["visual_slots"], axis=1)


def _slots(op: GraphWriter, keys: ir.Value) -> ir.Value:
    """0, 1, ... up to the length of the cache, int64: a constant where that is known."""
    assert keys.shape is not None
    if isinstance(capacity := keys.shape[2], int):
        return op.constant(np.arange(capacity, dtype=np.int64)[None, None], "slots")
    start, step = (op.constant(np.array(n, np.int64), f"from_{n}") for n in (0, 1))
    length = op("Squeeze", op("Shape", keys, start=2, end=3))
    return op("Range", start, length, step)


def _last_size(value: ir.Value) -> int:
    assert value.shape is not None
    return int(value.shape.numpy()[-1])
