"""What OpenVINO's files say of themselves."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

__all__ = ["LANGUAGE_MODEL", "weights"]

LANGUAGE_MODEL = "openvino_language_model.xml"
_VISION_MODEL = "openvino_vision_embeddings*_model.xml"


def weights(directory: Path) -> str:
    """How language model and vision tower are stored, as NNCF wrote it beside the graphs."""
    vision = {_compression(path) for path in directory.glob(_VISION_MODEL)}
    return f"{_compression(directory / LANGUAGE_MODEL)}, vision {' and '.join(sorted(vision))}"


def _compression(path: Path) -> str:
    found = ET.parse(path).find("rt_info/nncf/weight_compression")
    if found is None:
        return "uncompressed"
    facts = {child.tag: child.get("value", "") for child in found}
    group = f" g{facts['group_size']}" if facts["group_size"] != "-1" else ""
    backup = "" if facts["all_layers"] == "True" else f", output layer {facts['backup_mode']}"
    is_int4 = facts["mode"].startswith("int4")
    return f"{facts['mode']}{group}{backup if is_int4 else ''}"
