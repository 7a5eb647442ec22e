"""One small export a family whose pictures have a varying number of visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="exporting needs torch")

from anyres_checkpoints import write_anyres_checkpoint
from qwen_checkpoints import write_qwen_checkpoint
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model

__all__ = ["EXPORTS", "Export", "write_export"]


@dataclass(frozen=True)
class Export:
    """Which checkpoint, how it is written, and for which target."""

    write: Callable[[Path, str], Path]
    checkpoint: str
    target: str


EXPORTS = {
    "llava_next": Export(write_anyres_checkpoint, "next-llama-hub", "tensorrt"),
    "internvl": Export(write_tiled_checkpoint, "internvl-qwen2-hub", "tensorrt"),
    "smolvlm": Export(write_tiled_checkpoint, "smolvlm-llama", "jetpack6"),
}
_INSIDE_ONLY = {"qwen3_vl": Export(write_qwen_checkpoint, "qwen3-v5", "jetpack6")}


def write_export(path: Path, name: str, **options: Any) -> Path:
    """Write the export ``name``, unchecked: keep 0.3, fp32 unless options say otherwise.

    ``qwen3_vl`` is not in ``EXPORTS``: it is for a selection inside the LLM.
    """
    export = {**EXPORTS, **_INSIDE_ONLY}[name]
    checkpoint = path.with_name(f"{path.name}-checkpoint")
    if not checkpoint.exists():
        export.write(checkpoint, export.checkpoint)
    fixed = {"keep": 0.3, "dtype": "fp32", "target": export.target, "verify": False}
    export_model(ExportOptions(model=str(checkpoint), output=path, **{**fixed, **options}))
    return path
