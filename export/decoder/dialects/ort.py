"""ONNX Runtime's own operators (com.microsoft)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.quantization.dynamic_int8 import dynamic_int8_matmul
from divprune.export.checkpoint.quantization.matmul_nbits import matmul_nbits
from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix
from divprune.export.decoder.dialects.protocol import WRITE_INDICES, KVPair, StepState
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.graphs.writer import GraphWriter

__all__ = ["OrtDialect", "OrtLengthsDialect"]


class OrtDialect:
    """ONNX Runtime's own operators: rotary, normalisation and grouped-query attention.

    GroupQueryAttention reads only the live part of the cache and updates it in place when its
    past and present are bound to one buffer. It needs no opset above 20, so that ONNX Runtime
    1.22 and Python 3.10 can run it.
    """

    name = "ort"
    opset_imports: Mapping[str, int] = MappingProxyType({"": 20, "com.microsoft": 1})
    cache_output: Literal["present", "new"] = "present"
    slot_inputs = WRITE_INDICES
    takes_last_row = False
    open_cache_length = True
    bounds_attention = False  # the operator does it by itself
    min_onnxruntime = "1.22"

    def for_recording(self) -> OrtLengthsDialect:
        """The same with the lengths as inputs."""
        return OrtLengthsDialect()

    def step_state(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        inputs_embeds: ir.Value,
        rope: tuple[ir.Value, ir.Value],
        slots: Sequence[ir.Value],
        max_seq_len: int,
        live_slots: ir.Value | None = None,
    ) -> StepState:
        """Cache lengths as GroupQueryAttention wants them: int32 [1]."""
        (write_indices,) = slots
        length = op("Shape", inputs_embeds, start=1, end=2, name="sequence_length")
        total = op("Add", write_indices, length, name="total_length")
        last = op("Sub", total, op.constant(np.array([1], np.int64), "one"), name="last_slot")
        return _state(
            op,
            rope,
            op("Cast", last, to=ir.DataType.INT32, name="seqlens_k"),
            op("Cast", total, to=ir.DataType.INT32, name="total_sequence_length"),
        )

    def quantized_matmul(
        self,
        op: GraphWriter,
        x: ir.Value,
        weight: QuantizedMatrix,
        dtype: ir.DataType,
        name: str,
    ) -> ir.Value:
        """MatMulNBits for 4 bits; dynamic int8 for 8."""
        spell = matmul_nbits if weight.scheme.bits == 4 else dynamic_int8_matmul
        return spell(op, x, weight, dtype, name)

    def rms_norm(self, op: GraphWriter, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
        """SimplifiedLayerNormalization; ONNX Runtime fuses it with the residual addition."""
        return op("SimplifiedLayerNormalization", x, scale, axis=-1, epsilon=epsilon, stash_type=1)

    def rotary(self, op: GraphWriter, x: ir.Value, num_heads: int, state: StepState) -> ir.Value:
        """com.microsoft RotaryEmbedding over rows 0..S-1 of this step's cosine and sine."""
        return op(
            "RotaryEmbedding",
            x,
            state.extras["row_offset"],
            state.cosine,
            state.sine,
            domain="com.microsoft",
            num_heads=num_heads,
        )

    def attention(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        past: KVPair,
        state: StepState,
    ) -> tuple[ir.Value, KVPair]:
        """com.microsoft GroupQueryAttention with a shared past/present buffer."""
        output, key, value = op.multi(
            "GroupQueryAttention",
            *qkv,
            past.key,
            past.value,
            state.extras["seqlens_k"],
            state.extras["total"],
            num_outputs=3,
            domain="com.microsoft",
            num_heads=spec.num_heads,
            kv_num_heads=spec.num_kv_heads,
            scale=spec.head_dim**-0.5,
        )
        return output, KVPair(key, value)


class OrtLengthsDialect(OrtDialect):
    """The same with the lengths as inputs, so that no node of the graph computes on the host.

    ``seqlens_k`` is the last slot that is written; what it masks is never read, so that
    ``total_sequence_length`` may stay what it is, the length of the cache, while a recorded step
    runs again and again.
    """

    slot_inputs: Mapping[str, ir.DataType] = MappingProxyType(
        {"seqlens_k": ir.DataType.INT32, "total_sequence_length": ir.DataType.INT32}
    )
    takes_last_row = True  # a prompt that is padded has rows behind its last one

    def step_state(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        inputs_embeds: ir.Value,
        rope: tuple[ir.Value, ir.Value],
        slots: Sequence[ir.Value],
        max_seq_len: int,
        live_slots: ir.Value | None = None,
    ) -> StepState:
        """The lengths as they are given."""
        return _state(op, rope, *slots)


def _state(
    op: GraphWriter, rope: tuple[ir.Value, ir.Value], seqlens_k: ir.Value, total: ir.Value
) -> StepState:
    extras = {
        "seqlens_k": seqlens_k,
        "total": total,
        # The rows of cosine and sine are already those of position_ids.
        "row_offset": op.constant(np.array([0], np.int64), "row_offset"),
    }
    return StepState(*rope, extras)
