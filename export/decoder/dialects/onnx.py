"""Standard ONNX of opset 24, for TensorRT 10.15 and later and for TensorRT-RTX."""

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

__all__ = ["OnnxDialect"]


class OnnxDialect:
    """TensorScatter, Attention, RotaryEmbedding and RMSNormalization as ONNX defines them.

    Attention reads as much of the cache as ``live_slots`` is long, under an explicit mask: the
    shapes of a decode step stay what they are for as long as that length does. Its own inputs for
    a cache are of no use here: TensorRT refuses ``past_key`` and ignores ``nonpad_kv_seqlen``
    without a word. What TensorRT alone needs to be told is added to a copy of the file
    (``divprune.export.output.tensorrt_graphs``): ONNX Runtime runs this one.
    """

    name = "onnx"
    opset_imports: Mapping[str, int] = MappingProxyType({"": 24})
    cache_output: Literal["present", "new"] = "present"
    slot_inputs = WRITE_INDICES
    takes_last_row = False
    open_cache_length = False
    bounds_attention = True
    min_onnxruntime = "1.25"

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
        """The mask bool [1, 1, S, live] and where to write."""
        assert live_slots is not None
        (write_indices,) = slots
        batch = op.constant(np.array([0]), "batch")
        cosine, sine = (op("Unsqueeze", table, batch) for table in rope)
        offsets = row_offsets(op, inputs_embeds, max_seq_len)
        last_seen = op("Add", offsets, write_indices, name="last_seen")
        column = op("Unsqueeze", last_seen, op.constant(np.array([1]), "column"))
        visible = op("LessOrEqual", op("Unsqueeze", live_slots, batch, name="slots"), column)
        mask = op("Unsqueeze", visible, op.constant(np.array([0, 1]), "heads"), name="mask")
        extras = {"mask": mask, "write_indices": write_indices, "live": live_length(op, live_slots)}
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
        """RMSNormalization in float32 between two casts, whatever the builder would choose."""
        if scale.dtype == ir.DataType.FLOAT:
            return op("RMSNormalization", x, scale, axis=-1, epsilon=epsilon)
        wide, wide_scale = (op("Cast", value, to=ir.DataType.FLOAT) for value in (x, scale))
        normed = op("RMSNormalization", wide, wide_scale, axis=-1, epsilon=epsilon)
        return op("Cast", normed, to=scale.dtype)

    def rotary(self, op: GraphWriter, x: ir.Value, num_heads: int, state: StepState) -> ir.Value:
        """RotaryEmbedding with this step's rows of cosine and sine, [1, S, head_dim / 2]."""
        return op("RotaryEmbedding", x, state.cosine, state.sine, num_heads=num_heads)

    def attention(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        past: KVPair,
        state: StepState,
    ) -> tuple[ir.Value, KVPair]:
        """Write the rows into the cache, then attend to its live part under the mask."""
        query = split_heads(op, qkv[0], spec.num_heads, spec.head_dim)
        key, value = (
            op(
                "TensorScatter",
                cache,
                split_heads(op, rows, spec.num_kv_heads, spec.head_dim),
                state.extras["write_indices"],
                axis=-2,
            )
            for cache, rows in ((past.key, qkv[1]), (past.value, qkv[2]))
        )
        seen = [live_part(op, cache, state.extras["live"]) for cache in (key, value)]
        context = op("Attention", query, *seen, state.extras["mask"], scale=spec.head_dim**-0.5)
        return join_heads(op, context, spec.num_heads * spec.head_dim), KVPair(key, value)
