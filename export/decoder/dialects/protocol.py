"""How each target spells the operations of a decoder block.

``block.py`` writes the block once in terms of this protocol. A dialect is one class in a module
of its own; adding one means adding the module and a line in the registry of this package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import onnx_ir as ir

from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.graphs.writer import GraphWriter

__all__ = ["WRITE_INDICES", "Dialect", "KVPair", "StepState"]

WRITE_INDICES: Mapping[str, ir.DataType] = MappingProxyType({"write_indices": ir.DataType.INT64})
"""The usual ``slot_inputs``: the first cache slot to write."""


@dataclass(frozen=True, slots=True)
class KVPair:
    """Key and value cache of one layer, each [1, KV heads, S_max or S, head_dim]."""

    key: ir.Value
    value: ir.Value


@dataclass(frozen=True, slots=True)
class StepState:
    """What all layers share in one step, made once from the positions and ``slot_inputs``.

    ``cosine`` and ``sine`` are [S, head_dim / 2] in the model's dtype, with the axes that the
    dialect adds; ``extras`` are values that only the dialect knows how to use.
    """

    cosine: ir.Value
    sine: ir.Value
    extras: dict[str, ir.Value]


class Dialect(Protocol):
    """One way to spell a decoder block in ONNX.

    Attributes:
        name: What the manifest calls it.
        opset_imports: Operator sets by domain.
        cache_output: ``present`` where ``present_key_i`` and ``present_value_i`` are the whole
            cache, updated; ``new`` where ``new_key_i`` and ``new_value_i`` are the rows
            [1, KV heads, S, head_dim] that the runtime has to write.
        slot_inputs: Names and types of the inputs [1] that say which cache slots are written.
        takes_last_row: Whether the input ``last_row``, int64 [1], says which row gives the logits;
            otherwise the last one does.
        open_cache_length: Whether the length of the cache is a name in the graph, so that the
            runtime may allocate less than ``max_seq_len`` slots.
        bounds_attention: Whether the graph has the input ``live_slots``: int64 [live], the slots
            0 to live - 1, beyond which attention does not look.
        min_onnxruntime: The first ONNX Runtime that runs it.
    """

    name: str
    opset_imports: Mapping[str, int]
    cache_output: Literal["present", "new"]
    slot_inputs: Mapping[str, ir.DataType]
    takes_last_row: bool
    open_cache_length: bool
    bounds_attention: bool
    min_onnxruntime: str

    def for_recording(self) -> Dialect | None:
        """The dialect of a graph whose steps can be recorded as CUDA graphs; None without one."""
        ...

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
        """Write what the layers share.

        ``rope`` is (cosine, sine), each [S, head_dim / 2]; ``slots`` are the ``slot_inputs``;
        ``live_slots`` is there where the dialect bounds attention by it.
        """
        ...

    def quantized_matmul(
        self,
        op: GraphWriter,
        x: ir.Value,
        weight: QuantizedMatrix,
        dtype: ir.DataType,
        name: str,
    ) -> ir.Value:
        """A linear layer whose weight is quantised: x [1, S, in] to [1, S, out] of ``dtype``."""
        ...

    def rms_norm(self, op: GraphWriter, x: ir.Value, scale: ir.Value, epsilon: float) -> ir.Value:
        """Root-mean-square normalisation over the last axis, accumulated in float32."""
        ...

    def rotary(self, op: GraphWriter, x: ir.Value, num_heads: int, state: StepState) -> ir.Value:
        """Rotate [1, S, heads * head_dim]; the halves of a head are (first, second)."""
        ...

    def attention(
        self,
        op: GraphWriter,
        spec: DecoderSpec,
        qkv: tuple[ir.Value, ir.Value, ir.Value],
        past: KVPair,
        state: StepState,
    ) -> tuple[ir.Value, KVPair]:
        """Causal attention by slots: row r sees slots <= write_indices + r.

        A slot that was not written yet has no weight. ``ort`` does not even read it; the others
        multiply it by zero, so what lies there has to be finite.

        Takes q, k and v as [1, S, heads * head_dim]; returns [1, S, heads * head_dim] and the
        cache with S more slots written, or these S alone (``cache_output``).
        """
        ...
