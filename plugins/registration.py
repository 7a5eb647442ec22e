"""Which form the plugin takes in which TensorRT, and registering it there."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Literal

from divprune.runtime.errors import BackendError

__all__ = ["Realisation", "plugin_realisation", "register_plugin"]

# aot: the kernel is embedded in the engine; ipluginv3: launched from Python in the process
# that runs the engine; loop: no plugin, the graph with the ONNX Loop.
Realisation = Literal["aot", "ipluginv3", "loop"]

_VERSION = re.compile(r"(\d+)\.(\d+)")
_FIRST_WITH_AOT = (10, 9)
_FIRST_WITH_PLUGIN = (10, 3)


def plugin_realisation(tensorrt_version: str) -> Realisation:
    """Kinds of plugins that a version of TensorRT supports.

    TensorRT-RTX counts its own versions from 1 and cannot host plugins: ``loop``.

    Raises:
        BackendError: if the version cannot be read.
    """
    found = _VERSION.match(tensorrt_version)
    if found is None:
        raise BackendError(
            "The version of TensorRT cannot be read",
            expected="MAJOR.MINOR…",
            found=tensorrt_version,
        )
    version = (int(found[1]), int(found[2]))
    if version >= _FIRST_WITH_AOT:
        return "aot"
    return "ipluginv3" if version >= _FIRST_WITH_PLUGIN else "loop"


def register_plugin(tensorrt: ModuleType) -> Realisation:
    """Make ``divprune::GreedyMaxMin`` known to TensorRT, unless it is already.

    Needed before a graph with that node is parsed, and, where the realisation is
    ``ipluginv3``, before an engine made from it is deserialised.

    Args:
        tensorrt: The imported ``tensorrt`` or ``tensorrt_rtx``.

    Returns:
        The realisation; ``loop`` if nothing was registered because nothing can be.
    """
    realisation: Realisation = "loop"
    if tensorrt.__name__ != "tensorrt_rtx":
        realisation = plugin_realisation(tensorrt.__version__)
    if realisation == "aot":
        from divprune.plugins.aot_plugin import register_aot_plugin

        register_aot_plugin()
    elif realisation == "ipluginv3":
        from divprune.plugins.v3_plugin import register_v3_plugin

        register_v3_plugin(tensorrt)
    return realisation
