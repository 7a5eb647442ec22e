"""The attention of a traced vision tower as one operator of ONNX Runtime.

Torch's exporter spells attention out: two products, a softmax, and matrices [heads, positions,
positions] between them, 21 MiB each in CLIP ViT-L/14-336. MultiHeadAttention (com.microsoft)
computes the same a block at a time and never has such a matrix.

    q ─► Reshape ─► Transpose ─► Mul ─────────────────────┐
    k ─► Reshape ─► Transpose ─► (transposed again) ─► Mul ─► MatMul ─► Softmax ─► MatMul ─► Reshape ─►
    v ─► Reshape ─► Transpose ──────────────────────────────────────────────────────┘    Transpose ─► Reshape
"""  # noqa: E501

from __future__ import annotations

import onnx_ir as ir

__all__ = ["fuse_attention"]


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
    if scores is None or context is None:
        return False
    found = [_head_input(scores, 0), _head_input(scores, 1), _head_input(context, 1)]
    end = _joined(context)
    sources = [pair[0] for pair in found if pair is not None]
    if len(sources) < 3 or end is None:
        return False
    scale = 1.0
    for pair in found:
        assert pair is not None
        scale *= pair[1]
    by_head = context.outputs[0].shape
    if by_head is None or by_head.rank() != 4 or not isinstance(by_head[1], int):
        return False
    fused = ir.node(
        "MultiHeadAttention",
        sources,
        {"num_heads": by_head[1], "scale": scale},
        domain="com.microsoft",
        name=softmax.name,
    )
    fused.outputs[0].shape, fused.outputs[0].type = end.outputs[0].shape, end.outputs[0].type
    ir.convenience.replace_nodes_and_values(graph, end, [end], [fused], end.outputs, fused.outputs)
    return True


def _head_input(node: ir.Node, index: int) -> tuple[ir.Value, float] | None:
    """What an operand [1, heads, S, D] was split from, [1, S, heads * D], and what scales it."""
    scale = 1.0
    value = node.inputs[index]
    while value is not None and (maker := value.producer()) is not None:
        if maker.op_type == "Mul":
            factor = _scalar(maker.inputs[1])
            if factor is None:
                return None
            scale *= factor
        elif maker.op_type not in ("Reshape", "Transpose"):
            return (value, scale) if _is_joined(value) else None
        value = maker.inputs[0]
    return None


def _is_joined(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 3


def _scalar(value: ir.Value | None) -> float | None:
    constant = None if value is None else ir.convenience.get_const_tensor(value)
    return float(constant.numpy()) if constant is not None and constant.size == 1 else None


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


def _joined(context: ir.Node) -> ir.Node | None:
    """The node that has joined the heads again: a Reshape behind a Transpose."""
    node: ir.Node | None = context
    transposed = False
    while node is not None and (node := _only_use(node, "Reshape", "Transpose")) is not None:
        transposed = transposed or node.op_type == "Transpose"
        if transposed and node.op_type == "Reshape":
            return node if _is_joined(node.outputs[0]) else None
    return None


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        unused = not any(value.uses() or value.is_graph_output() for value in node.outputs)
        if unused:
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
