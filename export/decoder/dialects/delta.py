"""Plain operators of opset 17, for TensorRT 10.3 (JetPack 6) to 10.14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.quantization.dequantize_linear import dequantized_matmul
from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix
from divprune.export.decoder.dialects.pieces import (
    join_heads,
    live_length,
    live_part,
    row_offsets,
    split_heads,
)
from divprune.export.decoder.dialects.protocol import WRITE_INDICES, KVPair, StepState
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.graphs.writer import GraphWriter

__all__ = ["DeltaDialect"]

# Finite: a row that saw nothing would be NaN with -inf.
_UNSEEN = np.finfo(np.float32).min
_TO_THE_END = np.iinfo(np.int64).max


class DeltaDialect:
    """A decoder that reads the cache and leaves writing it to the runtime.

    With ``quantized`` weights it is of opset 21, all else as it is.

    These TensorRT versions cannot update a cache in place, and a cache that is an output would
    be copied at every step. So the graph yields the rows that are new; where attention needs
    old and new together, it concatenates scores, which are small, instead of caches.

    The G query heads that share a key/value head stand below each other as G * S rows of one
    product, so that grouped queries cost no copy of the cache either. Scores become float32
    before they are masked and normalised.
    """

    name = "delta"
    cache_output: Literal["present", "new"] = "new"
    slot_inputs = WRITE_INDICES
    takes_last_row = False
    open_cache_length = False
    bounds_attention = True
    min_onnxruntime = "1.22"

    def __init__(self, *, quantized: bool = False) -> None:
        # DequantizeLinear has blocks since opset 21.
        self.opset_imports: Mapping[str, int] = MappingProxyType({"": 21 if quantized else 17})

    def for_recording(self) -> None:
        """None: TensorRT records its own engines."""

    def step_state(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        inputs_embeds: ir.Value,
        rope: tuple[ir.Value, ir.Value],
        slots: Sequence[ir.Value],
        max_seq_len: int,
        live_slots: ir.Value | None,
    ) -> StepState:
        """Which slots (bool [1, live]) and which new rows (bool [G * S, S]) a row sees."""
        (write_indices,) = slots
        groups = spec.num_heads // spec.num_kv_heads
        head_axes = op.constant(np.array([0, 2]), "head_axes")
        cosine, sine = (op("Unsqueeze", table, head_axes) for table in rope)
        offsets = row_offsets(op, inputs_embeds, max_seq_len)
        in_groups = op("Tile", offsets, op.constant(np.array([groups]), "groups"))
        below = op("Unsqueeze", in_groups, op.constant(np.array([1]), "below"))
        beside = op("Unsqueeze", offsets, op.constant(np.array([0]), "beside"))
        assert live_slots is not None
        row = op("Unsqueeze", live_slots, op.constant(np.array([0]), "row"), name="slots")
        extras = {
            "live": live_length(op, live_slots),
            "sees_slot": op("Less", row, write_indices, name="sees_slot"),
            "sees_new": op("LessOrEqual", beside, below, name="sees_new"),
            "halves": op.constant(np.array([spec.head_dim // 2] * 2), "halves"),
        }
        return StepState(cosine, sine, extras)

    def quantized_matmul(
        self,
        op: GraphWriter,
        x: ir.Value,
        weight: QuantizedMatrix,
        dtype: ir.DataType,
        name: str,
    ) -> ir.Value:
        """Blocked DequantizeLinear before MatMul, and a correction for zero points."""
        return dequantized_matmul(op, x, weight, dtype, name)

    def rms_norm(self, op: GraphWriter, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
        """The formula, in float32: the squares of float16 numbers above 255 overflow."""
        half = scale.dtype != ir.DataType.FLOAT
        wide = op("Cast", x, to=ir.DataType.FLOAT) if half else x
        mean = self._row_mean(op, op("Mul", wide, wide))
        root = op("Sqrt", op("Add", mean, op.constant(np.array(epsilon, np.float32), "epsilon")))
        normed = op("Div", wide, root)
        if half:
            normed = op("Cast", normed, to=scale.dtype)
        return op("Mul", normed, scale)

    def _row_mean(self, op: GraphWriter, x: ir.Value) -> ir.Value:
        if self.opset_imports[""] < 18:  # where the axes became an input
            return op("ReduceMean", x, axes=[-1], keepdims=1)
        return op("ReduceMean", x, op.constant(np.array([-1]), "row"), keepdims=1)

    def rotary(self, op: GraphWriter, x: ir.Value, num_heads: int, state: StepState) -> ir.Value:
        """(a, b) to (a cos - b sin, b cos + a sin), a and b being the halves of every head."""
        heads = op("Reshape", x, op.constant(np.array([0, 0, num_heads, -1]), "per_head"))
        first, second = op.multi("Split", heads, state.extras["halves"], num_outputs=2, axis=-1)
        turned = [
            op("Sub", op("Mul", first, state.cosine), op("Mul", second, state.sine)),
            op("Add", op("Mul", second, state.cosine), op("Mul", first, state.sine)),
        ]
        joined = op.constant(np.array([0, 0, -1]), "joined")
        return op("Reshape", op("Concat", *turned, axis=-1), joined)

    def attention(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        past: KVPair,
        state: StepState,
    ) -> tuple[ir.Value, KVPair]:
        """softmax([q K_old | q K_new]) [V_old | V_new]; yields the new keys and values."""
        heads, kv_heads, head_dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        dtype = past.key.dtype
        assert dtype is not None
        live = state.extras["live"]
        key, value = (split_heads(op, rows, kv_heads, head_dim) for rows in qkv[1:])
        # Before the product and not after: so it stays within what float16 can hold.
        scale = op.constant(np.array(head_dim**-0.5, dtype.numpy()), "scale")
        query = split_heads(op, op("Mul", qkv[0], scale), heads, head_dim)
        grouped = op.constant(np.array([1, kv_heads, -1, head_dim]), "grouped")
        query = op("Reshape", query, grouped)
        scores = [
            _scores(op, query, live_part(op, past.key, live), state.extras["sees_slot"]),
            _scores(op, query, key, state.extras["sees_new"]),
        ]
        weights = op("Softmax", op("Concat", *scores, axis=-1), axis=-1)
        weights = op("Cast", weights, to=dtype)
        context = _weighted_sum(op, weights, live_part(op, past.value, live), value, live)
        apart = op.constant(np.array([1, heads, -1, head_dim]), "apart")
        context = join_heads(op, op("Reshape", context, apart), heads * head_dim)
        return context, KVPair(key, value)


def _scores(op: GraphWriter, query: ir.Value, keys: ir.Value, seen: ir.Value) -> ir.Value:
    """Float32 products of all queries [.., R, head_dim] and keys [.., T, head_dim], [.., R, T]."""
    products = op("MatMul", query, op("Transpose", keys, perm=[0, 1, 3, 2]))
    wide = op("Cast", products, to=ir.DataType.FLOAT)
    return op("Where", seen, wide, op.constant(np.array(_UNSEEN), "unseen"))


def _weighted_sum(
    op: GraphWriter, weights: ir.Value, old: ir.Value, new: ir.Value, border: ir.Value
) -> ir.Value:
    """Weights [.., R, T + S] over old values [.., T, D] and new ones [.., S, D]; T the border."""
    axis = op.constant(np.array([-1]), "last_axis")
    start, end = (op.constant(np.array([at]), "end") for at in (0, _TO_THE_END))
    of_old = op("Slice", weights, start, border, axis)
    of_new = op("Slice", weights, border, end, axis)
    return op("Add", op("MatMul", of_old, old), op("MatMul", of_new, new))
