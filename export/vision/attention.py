"""The attention of a traced vision tower as one operator of ONNX Runtime.

Torch's exporter spells attention out: two products, a softmax, and matrices [heads, positions,
positions] between them, 21 MiB each in CLIP ViT-L/14-336. MultiHeadAttention (com.microsoft)
computes the same a block at a time and never has such a matrix.

    q ─► Reshape ─► Transpose ─► Mul ─────────────────────┐
    k ─► Reshape ─► Transpose ─► (transposed again) ─► Mul ─► MatMul ─► Softmax ─► MatMul ─► Reshape ─►
    v ─► Reshape ─► Transpose ──────────────────────────────────────────────────────┘    Transpose ─► Reshape

A mask [batch, 1, queries, keys] that is added before the softmax becomes its ``attention_bias``.
"""  # noqa: E501

from __future__ import annotations

import onnx_ir as ir

__all__ = ["fuse_attention", "scalar_of"]


def fuse_attention(graph: ir.Graph) -> int:
    """Replace what is spelled exactly so; returns how often it was.

    Where the probabilities are read by anything else (a selector that ranks by attention), or the
    spelling is another one, the nodes stay.
    """
    count = 0
    for node in list(graph):
        if node.op_type == "Softmax" and _fuse(graph, node):
            count += 1
    if count:
        graph.opset_imports["com.microsoft"] = 1
        _remove_unused(graph)
    return count


def _fuse(graph: ir.Graph, softmax: ir.Node) -> bool:
    scores, context = _producer(softmax, 0, "MatMul"), _only_use(softmax, "MatMul")
    bias = None
    if scores is None and (masked := _producer(softmax, 0, "Add")) is not None:
        scores, bias = _producer(masked, 0, "MatMul"), masked.inputs[1]
    if scores is None or context is None or not _is_full_mask(bias):
        return False
    by_head = context.outputs[0].shape
    if by_head is None or by_head.rank() != 4:
        return False
    heads, head_dim = by_head[1], by_head[3]
    if not isinstance(heads, int) or not isinstance(head_dim, int):
        return False
    width = heads * head_dim
    operands = ((scores, 0), (scores, 1), (context, 1))
    found = [_head_input(node, index, width) for node, index in operands]
    end = _joined(context, width)
    sources = [pair[0] for pair in found if pair is not None]
    if len(sources) < 3 or end is None:
        return False
    scale = 1.0
    for pair in found:
        assert pair is not None
        scale *= pair[1]
    fused = ir.node(
        "MultiHeadAttention",
        [*sources, None, None, bias] if bias is not None else sources,
        {"num_heads": heads, "scale": scale},
        domain="com.microsoft",
        name=softmax.name,
    )
    fused.outputs[0].shape, fused.outputs[0].type = end.outputs[0].shape, end.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, end, [end], [fused], end.outputs, fused.outputs)
    return True


def _is_full_mask(bias: ir.Value | None) -> bool:
    """Whether it can be an ``attention_bias``: rows of queries are not broadcast there."""
    if bias is None:
        return True
    return bias.shape is not None and bias.shape.rank() == 4 and bias.shape[2] != 1


def _head_input(node: ir.Node, index: int, width: int) -> tuple[ir.Value, float] | None:
    """What an operand [1, heads, S, D] was split from, [1, S, heads * D], and what scales it."""
    scale = 1.0
    value = node.inputs[index]
    while value is not None and not _is_joined(value, width):
        if (maker := value.producer()) is None:
            return None
        if maker.op_type == "Mul":
            factor = scalar_of(maker.inputs[1])
            if factor is None:
                return None
            scale *= factor
        elif maker.op_type not in ("Reshape", "Transpose"):
            return None
        value = maker.inputs[0]
    return None if value is None else (value, scale)


def _is_joined(value: ir.Value, width: int) -> bool:
    return value.shape is not None and value.shape.rank() == 3 and value.shape[2] == width


def scalar_of(value: ir.Value | None) -> float | None:
    """The number that a constant of one element is; None for anything else."""
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return float(constant.numpy().item()) if constant is not None and constant.size == 1 else None


def _producer(node: ir.Node, index: int, op_type: str) -> ir.Node | None:
    value = node.inputs[index]
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.op_type == op_type else None


def _only_use(node: ir.Node, *op_types: str) -> ir.Node | None:
    (value,) = node.outputs
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type not in op_types:
        return None
    return uses[0].node


def _joined(context: ir.Node, width: int) -> ir.Node | None:
    """The node that has joined the heads again: a Reshape behind a Transpose."""
    node: ir.Node | None = context
    transposed = False
    while node is not None and (node := _only_use(node, "Reshape", "Transpose")) is not None:
        transposed = transposed or node.op_type == "Transpose"
        if transposed and node.op_type == "Reshape":
            return node if _is_joined(node.outputs[0], width) else None
    return None


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        unused = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if unused:
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
