"""One decoder block, written once for every dialect.

        x ──► norm ──► q k v ──► (norms) ──► rotary ──► attention ──► o ──► + ──► norm ──► mlp ──► +
        └───────────────────────────────────────────────────────────────────┘└─────────────────────┘

The weights decide about biases and query/key norms: what the checkpoint has is what is written.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.dialects import Dialect, KVPair, StepState
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.graphs.writer import GraphWriter

__all__ = ["BlockWriter"]


class BlockWriter:
    """Writes the blocks of one decoder into one graph."""

    def __init__(
        self, op: GraphWriter, spec: DecoderSpec, dialect: Dialect, weights: WeightSource
    ) -> None:
        self._op = op
        self._spec = spec
        self._dialect = dialect
        self._weights = weights
        self._queries: dict[int, ir.Value] = {}

    def write(
        self,
        layer: int,
        hidden: ir.Value,
        past: KVPair,
        state: StepState,
        *,
        last_row: bool | ir.Value = False,
        plane: ir.Value | None = None,
    ) -> tuple[ir.Value, KVPair]:
        """Write block ``layer``: [1, S, hidden] in, [1, S, hidden] and the new cache out.

        With ``last_row`` [1, 1, hidden] comes out: the others are not needed behind attention. It
        is the last of them, or the one whose number, int64 [1], is given.
        ``plane`` [1, S, hidden] is added to what comes out.
        """
        op, name = self._op, f"language_model.layers.{layer}"
        with op.scope(f"layers.{layer}"):
            context, present = self._attention(
                layer, self.norm(hidden, f"{name}.input_layernorm"), past, state
            )
            if last_row:
                last = last_row
                if not isinstance(last, ir.Value):
                    last = op.constant(np.array([-1]), "last_row")
                context = op("Gather", context, last, axis=1, name="last_context")
                hidden = op("Gather", hidden, last, axis=1, name="last_hidden")
                plane = plane and op("Gather", plane, last, axis=1, name="last_of_plane")
            attended = self.linear(context, f"{name}.self_attn.o_proj")
            hidden = op("Add", hidden, attended, name="attention_residual")
            gated = self._mlp(f"{name}.mlp", self.norm(hidden, f"{name}.post_attention_layernorm"))
            hidden = op("Add", hidden, gated, name="mlp_residual")
            if plane is not None:
                hidden = op("Add", hidden, plane, name="with_plane")
            return hidden, present

    def last_query(self, layer: int) -> ir.Value:
        """The rotated query of the last row in a block that was written: [1, 1, heads * D]."""
        with self._op.scope(f"layers.{layer}"):
            last = self._op.constant(np.array([-1]), "last_row")
            return self._op("Gather", self._queries[layer], last, axis=1, name="last_query")

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        """The RMS normalisation of that name over the last axis."""
        scale = self._weights.vector(self._op, f"{name}.weight")
        return self._dialect.rms_norm(self._op, x, scale, self._spec.rms_norm_eps)

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        """The linear layer of that name, with its bias if the checkpoint has one."""
        op = self._op
        short = name.rsplit(".", 1)[-1]
        y, *others = self._products(x, f"{name}.weight", short)
        if others:
            y = op("Concat", y, *others, axis=-1, name=f"{short}_parts")
        if f"{name}.bias" in self._weights:
            y = op("Add", y, self._weights.vector(op, f"{name}.bias"), name=f"{short}_bias")
        return y

    def _products(self, x: ir.Value, name: str, short: str) -> list[ir.Value]:
        """The layer without bias: one product for each of the parts its weight is stored in."""
        op, weights = self._op, self._weights
        if weights.is_quantized(name):
            return [
                self._dialect.quantized_matmul(op, x, part, weights.dtype, short)
                for part in weights.quantized(name)
            ]
        return [op("MatMul", x, matrix, name=short) for matrix in weights.matrices(op, name)]

    def _attention(
        self, layer: int, x: ir.Value, past: KVPair, state: StepState
    ) -> tuple[ir.Value, KVPair]:
        spec, name = self._spec, f"language_model.layers.{layer}.self_attn"
        query = self._head_norm(self.linear(x, f"{name}.q_proj"), f"{name}.q_norm", spec.num_heads)
        key = self._head_norm(self.linear(x, f"{name}.k_proj"), f"{name}.k_norm", spec.num_kv_heads)
        value = self.linear(x, f"{name}.v_proj")
        query = self._dialect.rotary(self._op, query, spec.num_heads, state)
        self._queries[layer] = query
        key = self._dialect.rotary(self._op, key, spec.num_kv_heads, state)
        return self._dialect.attention(self._op, spec, (query, key, value), past, state)

    def _head_norm(self, x: ir.Value, name: str, num_heads: int) -> ir.Value:
        if f"{name}.weight" not in self._weights:
            return x
        op, head_dim = self._op, self._spec.head_dim
        heads = op("Reshape", x, op.constant(np.array([1, -1, num_heads, head_dim]), "per_head"))
        normed = self.norm(heads, name)
        return op("Reshape", normed, op.constant(np.array([1, -1, num_heads * head_dim]), "joined"))

    def _mlp(self, name: str, x: ir.Value) -> ir.Value:
        op = self._op
        gate = self.linear(x, f"{name}.gate_proj")
        up = self.linear(x, f"{name}.up_proj")
        activated = op("Mul", gate, op("Sigmoid", gate), name="silu")
        return self.linear(op("Mul", activated, up, name="gated"), f"{name}.down_proj")
