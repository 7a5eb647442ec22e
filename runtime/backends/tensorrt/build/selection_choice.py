"""Which vision graph is built: the one with the plugin, or the one with the ONNX Loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.plugins import plugin_realisation
from divprune.plugins.node import MAX_TOKENS

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.library import TensorRT
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["LOOP", "PLUGIN_GRAPH", "SelectionChoice", "choose_selection"]

LOOP = "loop"
PLUGIN_GRAPH = "vision_plugin"
_FORMS = {
    "aot": "the kernel goes into the engine",
    "ipluginv3": "Python launches the kernel in the process that runs the engine",
}


@dataclass(frozen=True, slots=True)
class SelectionChoice:
    """How the greedy loop runs (``loop``, ``aot`` or ``ipluginv3``), in which graph, and why."""

    realisation: str
    graph: str
    reason: str


def choose_selection(library: TensorRT, manifest: Manifest, *, plugin: bool) -> SelectionChoice:
    """The fastest realisation that this library can host.

    Args:
        library: TensorRT or TensorRT-RTX.
        manifest: Its ``vision_plugin`` graph has the plugin node, where there is one.
        plugin: False for ``--no-plugin``.
    """
    realisation = LOOP if library.is_rtx else plugin_realisation(library.version)
    num_tokens = manifest.selector.num_image_tokens
    if manifest.selector.inside_llm:
        reason = "between the halves of the language model"
    elif not plugin:
        reason = "--no-plugin"
    elif realisation == LOOP:
        reason = f"{library.title} cannot host the plugin"
    elif num_tokens > MAX_TOKENS:
        reason = f"{num_tokens} visual tokens are more than the plugin's {MAX_TOKENS}"
    elif PLUGIN_GRAPH not in manifest.graphs:
        reason = "the export has no graph with the plugin"
    else:
        return SelectionChoice(realisation, PLUGIN_GRAPH, _FORMS[realisation])
    return SelectionChoice(LOOP, "vision", reason)
