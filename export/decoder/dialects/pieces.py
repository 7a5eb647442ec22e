"""Pieces that the dialects of plain ONNX operators share."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter

__all__ = ["join_heads", "live_length", "live_part", "row_offsets", "split_heads"]


def live_length(op: GraphWriter, live_slots: ir.Value) -> ir.Value:
    """Number of cache slots that attention looks at: int64 [1]."""
    return op("Shape", live_slots, start=0, end=1, name="live")


def live_part(op: GraphWriter, cache: ir.Value, live: ir.Value) -> ir.Value:
    """The first ``live`` slots of [1, KV heads, S_max, head_dim]."""
    first, axis = op.constant(np.array([0]), "first"), op.constant(np.array([2]), "slot_axis")
    return op("Slice", cache, first, live, axis)


def row_offsets(op: GraphWriter, inputs_embeds: ir.Value, max_seq_len: int) -> ir.Value:
    """0 to S - 1 for the S rows of this step, int64 [S]."""
    length = op("Shape", inputs_embeds, start=1, end=2, name="sequence_length")
    counting = op.constant(np.arange(max_seq_len), "counting")
    return op("Slice", counting, op.constant(np.array([0]), "first"), length, name="row_offsets")


def split_heads(op: GraphWriter, x: ir.Value, num_heads: int, head_dim: int) -> ir.Value:
    """[1, S, heads * head_dim] to [1, heads, S, head_dim]."""
    shape = op.constant(np.array([1, -1, num_heads, head_dim]), "per_head")
    return op("Transpose", op("Reshape", x, shape), perm=[0, 2, 1, 3])


def join_heads(op: GraphWriter, x: ir.Value, width: int) -> ir.Value:
    """[1, heads, S, head_dim] to [1, S, heads * head_dim], which is ``width``."""
    rows = op("Transpose", x, perm=[0, 2, 1, 3])
    return op("Reshape", rows, op.constant(np.array([1, -1, width]), "joined"))
