"""Put one traced graph into another: the parameters that both have exist once."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["splice"]


def splice(graph: ir.Graph, branch: ir.Graph, source: ir.Value, prefix: str) -> ir.Value:
    """Move the nodes of ``branch`` to the end of ``graph``, where ``source`` is its input.

    Both were traced from modules with the same parameter names, whose values are not attached
    yet: these are joined by name. Everything else of the branch goes below ``prefix``.

    Returns:
        What was the branch's only output.
    """
    (old_input,), (output,) = branch.inputs, branch.outputs
    new_values = {old_input: source} | _join_initializers(graph, branch, prefix)
    branch.outputs.clear()
    for node in list(branch):
        branch.remove(node)
        node.name = f"{prefix}/{node.name}"
        for index, value in enumerate(node.inputs):
            if value in new_values:
                node.replace_input_with(index, new_values[value])
        for value in node.outputs:
            value.name = f"{prefix}/{value.name}"
        graph.append(node)
    return output


def _join_initializers(
    graph: ir.Graph, branch: ir.Graph, prefix: str
) -> dict[ir.Value | None, ir.Value]:
    """For each parameter of the branch the one of ``graph``; constants move over."""
    joined: dict[ir.Value | None, ir.Value] = {}
    for name, value in list(branch.initializers.items()):
        del branch.initializers[name]
        if value.const_value is None and name in graph.initializers:
            joined[value] = graph.initializers[name]
            continue
        if value.const_value is not None:
            value.name = f"{prefix}/{name}"
        graph.register_initializer(value)
    return joined
