"""ONNX Runtime itself, without its telemetry.

Newer releases write an identifier of the machine to the home folder, warn where they cannot, and
send events; nothing here asked for that.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

__all__ = ["import_onnxruntime"]

_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> ModuleType:
    """The library; ``ORT_DISABLE_TELEMETRY=0`` in the environment leaves its telemetry on.

    Raises:
        ImportError: if it is not installed.
    """
    if os.environ.setdefault(_SWITCH, "1") == "0":
        return import_module("onnxruntime")
    library = import_module("onnxruntime")
    if hasattr(library, "disable_telemetry_events"):
        library.disable_telemetry_events()
    return library
