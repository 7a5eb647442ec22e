"""The LLM graph: embeddings in, last-row logits and the updated cache out.

| | name | dtype, shape | meaning |
|---|---|---|---|
| in | inputs_embeds | float [1, S, hidden] | S = prompt length in prefill, 1 in decode |
| in | position_ids | int64 [1, S], or [3, 1, S] | for the rotary embedding only; three: time, height, width |
| in | write_indices | int64 [1] | first cache slot to write |
| in | seqlens_k, total_sequence_length | int32 [1] | in llm/decode.onnx instead: the last slot to write, and how many there are at least |
| in | last_row | int64 [1] | in llm/decode.onnx: the row that gives the logits; those behind it are padding |
| in | live_slots | int64 [live] | 0 to live - 1: attention looks no further (``onnx``, ``delta``) |
| in | deepstack_i | float [1, S, hidden] | added to what layer i makes of its rows, if a model has such; zero on text rows |
| in/out | past_key_i, past_value_i / present_key_i, present_value_i | float [1, KV heads, S_max, head dim] | one buffer each, updated in place |
| out | logits | float32 [1, 1, vocabulary] | last row only |

``live`` is anything from what is filled, with ``onnx`` the new rows included, to S_max.

S_max is a number, or ``max_seq_len`` by name in dialects that leave it to the runtime.

In the dialect ``delta`` the cache is an input only; instead of present_key_i and present_value_i
there are new_key_i and new_value_i, float [1, KV heads, S, head dim], which the runtime writes.

Cut before layer L there are two of them. The front has layers 0 to L - 1 and, instead of logits,
``hidden_states`` [1, S, hidden] and on demand ``last_query`` [1, 1, heads * head dim], the last
row's rotated query in layer L - 1. The back has the other layers and the head, and takes
``hidden_states`` instead of ``inputs_embeds``. Caches keep the number of their layer, and so do
inputs ``deepstack_i``: a back that starts among their layers takes the rows that were not dropped.

The head needs the last row alone, so behind the attention of the last layer there is no other.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.block import BlockWriter
from divprune.export.decoder.dialects import Dialect, KVPair
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.graphs.files import ir_version
from divprune.export.graphs.writer import GraphWriter
from divprune.runtime.directory.manifest import CACHE_LENGTH, LIVE_LENGTH, LIVE_SLOTS

__all__ = ["DecoderPart", "write_decoder"]


@dataclass(frozen=True, slots=True)
class DecoderPart:
    """Which layers a graph has; the part with the last one has the head too.

    ``max_seq_len`` is the number of cache slots, ``last_query`` asks for that output.
    """

    name: str
    layers: range
    max_seq_len: int
    last_query: bool = False

    @property
    def input_name(self) -> str:
        """Name of the input that takes the rows."""
        return "hidden_states" if self.layers.start else "inputs_embeds"


def write_decoder(
    spec: DecoderSpec, dialect: Dialect, weights: WeightSource, part: DecoderPart
) -> ir.Model:
    """Write the decoder or a part of it; its weights are read when the model is saved."""
    op = GraphWriter()
    dtype = weights.dtype
    rows = _input(part.input_name, dtype, (1, "sequence", spec.hidden_size))
    axes = (3,) if spec.position_axes == 3 else ()
    position_ids = _input("position_ids", ir.DataType.INT64, (*axes, 1, "sequence"))
    slots = [_input(name, kind, (1,)) for name, kind in dialect.slot_inputs.items()]
    last_row = [_input("last_row", ir.DataType.INT64, (1,))] * dialect.takes_last_row
    live = [_input(LIVE_SLOTS, ir.DataType.INT64, (LIVE_LENGTH,))] * dialect.bounds_attention
    length = CACHE_LENGTH if dialect.open_cache_length else part.max_seq_len
    cache_shape = (1, spec.num_kv_heads, length, spec.head_dim)
    planes = {
        layer: _input(name, dtype, (1, "sequence", spec.hidden_size))
        for layer, name in enumerate(spec.planes)
        if layer in part.layers
    }
    pasts = [
        KVPair(
            _input(f"past_key_{i}", dtype, cache_shape),
            _input(f"past_value_{i}", dtype, cache_shape),
        )
        for i in part.layers
    ]
    with op.scope("shared"):
        rope = _rope(op, spec, position_ids, dtype)
        state = dialect.step_state(
            op, spec, rows, rope, slots, part.max_seq_len, live[0] if live else None
        )
    blocks = BlockWriter(op, spec, dialect, weights)
    hidden, outputs = rows, []
    for layer, past in zip(part.layers, pasts, strict=True):
        cut = layer == spec.num_layers - 1 and (last_row[0] if last_row else True)
        hidden, present = blocks.write(
            layer, hidden, past, state, last_row=cut, plane=planes.get(layer)
        )
        outputs += _cache_outputs(dialect, layer, present, past.key)
    results = _results(op, blocks, hidden, spec, part, dtype)
    caches = [value for past in pasts for value in (past.key, past.value)]
    graph = ir.Graph(
        inputs=[rows, position_ids, *slots, *last_row, *live, *planes.values(), *caches],
        outputs=[*results, *outputs],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports=dict(dialect.opset_imports),
        name=part.name,
    )
    return ir.Model(
        graph, ir_version=ir_version(dialect.opset_imports[""]), producer_name="divprune-edge"
    )


def _results(
    op: GraphWriter,
    blocks: BlockWriter,
    hidden: ir.Value,
    spec: DecoderSpec,
    part: DecoderPart,
    dtype: ir.DataType,
) -> list[ir.Value]:
    """The graph's outputs apart from the cache."""
    if part.layers.stop == spec.num_layers:
        return [_head(op, blocks, hidden, spec)]
    results = [_output(hidden, "hidden_states", dtype, (1, "sequence", spec.hidden_size))]
    if part.last_query:
        query = blocks.last_query(part.layers.stop - 1)
        results.append(_output(query, "last_query", dtype, (1, 1, spec.num_heads * spec.head_dim)))
    return results


def _rope(
    op: GraphWriter, spec: DecoderSpec, position_ids: ir.Value, dtype: ir.DataType
) -> tuple[ir.Value, ir.Value]:
    """Cosine and sine of this step's positions, [S, head_dim / 2]; angles in float32.

    Of three positions each frequency picks its own by Gather. A product with a matrix of zeros
    and ones would do the same, but not where TF32 computes it.
    """
    frequencies = np.array(spec.inverse_frequencies, np.float32)[None, :]
    if spec.rotary_axes:
        rows = op("Reshape", position_ids, op.constant(np.array([3, -1]), "rows"))
        column = op("Transpose", rows, perm=[1, 0])
    else:
        column = op("Reshape", position_ids, op.constant(np.array([-1, 1]), "column"))
    positions = op("Cast", column, to=ir.DataType.FLOAT, name="positions")
    if spec.rotary_axes:
        axes = op.constant(np.array(spec.rotary_axes), "rotary_axes")
        positions = op("Gather", positions, axes, axis=1, name="position_of_frequency")
    angles = op("Mul", positions, op.constant(frequencies, "inverse_frequencies"), name="angles")
    cosine, sine = op("Cos", angles), op("Sin", angles)
    if spec.rope_scaling != 1.0:
        factor = op.constant(np.array(spec.rope_scaling, np.float32), "rope_scaling")
        cosine, sine = op("Mul", cosine, factor), op("Mul", sine, factor)
    return (
        op("Cast", cosine, to=dtype, name="cosine"),
        op("Cast", sine, to=dtype, name="sine"),
    )


def _head(op: GraphWriter, blocks: BlockWriter, hidden: ir.Value, spec: DecoderSpec) -> ir.Value:
    with op.scope("head"):
        normed = blocks.norm(hidden, "language_model.norm")
        name = "language_model.embed_tokens" if spec.tied_head else "lm_head"
        logits = op("Cast", blocks.linear(normed, name), to=ir.DataType.FLOAT)
    return _output(logits, "logits", ir.DataType.FLOAT, (1, 1, spec.vocab_size))


def _cache_outputs(dialect: Dialect, layer: int, present: KVPair, past: ir.Value) -> list[ir.Value]:
    assert past.dtype is not None
    assert past.shape is not None
    batch, heads, slots, head_dim = past.shape
    shape = (batch, heads, slots if dialect.cache_output == "present" else "sequence", head_dim)
    return [
        _output(value, f"{dialect.cache_output}_{part}_{layer}", past.dtype, shape)
        for part, value in (("key", present.key), ("value", present.value))
    ]


def _input(name: str, dtype: ir.DataType, shape: tuple[int | str, ...]) -> ir.Value:
    return ir.val(name, dtype=dtype, shape=shape)


def _output(
    value: ir.Value, name: str, dtype: ir.DataType, shape: tuple[int | str | ir.SymbolicDim, ...]
) -> ir.Value:
    value.name, value.dtype, value.shape = name, dtype, ir.Shape(shape)
    return value
