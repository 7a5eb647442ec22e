"""The selection graph between the two halves of the decoder (``llm/selection.onnx``).

Inputs are those of ``SELECTION_INPUTS`` that the selector asks for; the output is
``selection_order``, int64 [K], of one picture. Where N varies from picture to picture, K is the
length of a further input, ``kept_slots``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from divprune.export.graphs.files import ir_version
from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.selection_graph import KEPT_SLOTS
from divprune.export.selection.sizes import KEPT, TOKENS, Size, size_of
from divprune.runtime.directory.manifest import CACHE_LENGTH

if TYPE_CHECKING:
    from divprune.export.planning.plan import ExportPlan
    from divprune.export.selection import InLLMSelector

__all__ = ["write_in_llm_selection"]


def write_in_llm_selection(plan: ExportPlan, selector: InLLMSelector) -> ir.Model:
    """The selection of K of the N tokens of one picture, in float32 whatever comes in."""
    op, opset = GraphWriter(prefix="selection"), plan.lane.vision_opset
    shapes = _input_shapes(plan)
    inputs = {name: ir.val(name, *shapes[name]) for name in selector.inputs}
    in_float32 = {
        name: value if value.dtype == ir.DataType.INT64 else _cast(op, value)
        for name, value in inputs.items()
    }
    slots = [ir.val(KEPT_SLOTS, ir.DataType.INT32, [KEPT])] if plan.varies else []
    sizes = _sizes(op, inputs, slots[0]) if slots else (plan.num_image_tokens, plan.num_kept)
    order = selector.write(op, in_float32, *sizes)
    order.name, order.type = "selection_order", ir.TensorType(ir.DataType.INT64)
    order.shape = ir.Shape([KEPT if slots else plan.num_kept])
    graph = ir.Graph(
        inputs=[*inputs.values(), *slots],
        outputs=[order],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": opset},
        name="llm_selection",
    )
    return ir.Model(graph, ir_version=ir_version(opset), producer_name="divprune-edge")


def _sizes(op: GraphWriter, inputs: dict[str, ir.Value], slots: ir.Value) -> tuple[Size, Size]:
    """N from the first input that has a row for each token, and K."""
    per_token = [value for name, value in inputs.items() if name.startswith("visual_")]
    return size_of(op, per_token[0]), size_of(op, slots)


def _input_shapes(plan: ExportPlan) -> dict[str, tuple[ir.DataType, tuple[int | str, ...]]]:
    spec, dtype = plan.spec, plan.weights.dtype
    slots = CACHE_LENGTH if plan.dialect.open_cache_length else plan.max_seq_len
    tokens = TOKENS if plan.varies else plan.num_image_tokens
    return {
        "visual_states": (dtype, (tokens, spec.hidden_size)),
        "last_state": (dtype, (1, spec.hidden_size)),
        "last_query": (dtype, (1, 1, spec.num_heads * spec.head_dim)),
        "keys": (dtype, (1, spec.num_kv_heads, slots, spec.head_dim)),
        "visual_slots": (ir.DataType.INT64, (tokens,)),
        "num_slots": (ir.DataType.INT64, (1,)),
    }


def _cast(op: GraphWriter, value: ir.Value) -> ir.Value:
    in_float32 = op("Cast", value, to=ir.DataType.FLOAT)
    in_float32.dtype, in_float32.shape = ir.DataType.FLOAT, value.shape
    return in_float32
