"""ONNX files for TensorRT where they differ from those for ONNX Runtime.

Both are made from a file that is already written and share its weights.

| file | made from | difference |
|---|---|---|
| vision/model.plugin.onnx | vision/model.onnx | the greedy loop is one plugin node |
| vision/selection.plugin.onnx | vision/selection.onnx | the same, to time what the other one does |
| llm/model.tensorrt.onnx | llm/model.onnx | Attention is marked as decomposable |

The halves of a decoder with a selection inside it (llm/front, llm/back) are marked the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from divprune.export.graphs.files import DECODER_FILES, describe_graph
from divprune.export.graphs.lanes import Lane, check_graph
from divprune.export.selection import InLLMSelector, PluginSelector, Selector
from divprune.export.selection.selection_graph import append_selection, remove_selection
from divprune.plugins.node import MAX_TOKENS, NAMESPACE
from divprune.runtime.directory.manifest import GraphSpec

__all__ = ["mark_attention", "replace_selection", "write_tensorrt_graphs"]

log = logging.getLogger(__name__)

_PLUGIN_GRAPHS = {
    "vision_plugin": "vision/model.plugin.onnx",
    "selection_plugin": "vision/selection.plugin.onnx",
}


def write_tensorrt_graphs(
    lane: Lane,
    directory: Path,
    selector: Selector | InLLMSelector,
    num_tokens: int,
    num_kept: int | None,
    decoder_graphs: Sequence[str] = ("llm",),
) -> dict[str, GraphSpec]:
    """Write the further files that ``lane`` needs, none for ONNX Runtime.

    With more tokens than the plugin holds there is no graph for it, and a warning that says so:
    engines then select with the Loop.

    Args:
        lane: Of the target.
        directory: Where the graphs are.
        selector: What chooses the tokens.
        num_tokens: N, or the largest where it varies.
        num_kept: K; None where N varies.
        decoder_graphs: Names of the graphs that hold the decoder.

    Returns:
        Their descriptions: ``vision_plugin``, ``selection_plugin`` and, for each decoder graph,
        one whose name ends in ``_tensorrt``, where they are needed.

    Raises:
        UnsupportedError: if one has an operator that the lane does not know.
    """
    if lane.limits is None:
        return {}
    models = {}
    hosts = lane.limits.plugins and isinstance(selector, PluginSelector)
    if hosts and isinstance(selector, Selector) and _fits_plugin(num_tokens):
        for name, path in _PLUGIN_GRAPHS.items():
            model = ir.load(directory / path.replace(".plugin", ""))
            replace_selection(model, selector, num_kept)
            models[name] = (model, path)
    if lane.marks_attention:
        for name in decoder_graphs:
            path = DECODER_FILES[name]
            model = ir.load(directory / path)
            mark_attention(model.graph)
            models[f"{name}_tensorrt"] = (model, path.replace("model.onnx", "model.tensorrt.onnx"))
    for model, path in models.values():
        check_graph(model, lane.limits)
        ir.save(model, directory / path)
    return {key: describe_graph(model, path) for key, (model, path) in models.items()}


def _fits_plugin(num_tokens: int) -> bool:
    if num_tokens <= MAX_TOKENS:
        return True
    log.warning(
        "%s is left out: %d visual tokens are more than the plugin's %d; engines of this"
        " directory select with the ONNX Loop",
        _PLUGIN_GRAPHS["vision_plugin"],
        num_tokens,
        MAX_TOKENS,
    )
    return False


def replace_selection(model: ir.Model, selector: Selector, num_kept: int | None) -> None:
    """Take the selection out of a vision graph and put the one with the plugin in.

    In the graph of the selection alone the features come in instead of going out. With None as
    ``num_kept`` it is the length of ``kept_slots``, as in the graph.
    """
    graph = model.graph
    features = remove_selection(graph)
    append_selection(graph, features, selector, num_kept, with_plugin=True)
    graph.opset_imports[NAMESPACE] = 1


def mark_attention(graph: ir.Graph) -> None:
    """Let TensorRT take Attention apart where no fused kernel of its covers the case.

    Without the mark it refuses to build then (always, for float32). ONNX Runtime refuses the
    mark, which is why it is not in the graph from the start.
    """
    for node in graph:
        if node.op_type == "Attention":
            node.attributes.add(ir.AttrInt64("TRT_decomposable", 1))
