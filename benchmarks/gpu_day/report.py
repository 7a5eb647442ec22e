"""The one file that all steps of a GPU day write what they find into."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["DEVICE", "QUICK", "ROOT", "output", "save"]

ROOT = Path(__file__).resolve().parents[2]
DEVICE = os.environ.get("GPU_DAY_DEVICE", "cuda")
QUICK = bool(os.environ.get("GPU_DAY_QUICK"))


def output() -> Path:
    """The folder of results.json, log and what tools have said."""
    return Path(os.environ.get("GPU_DAY_OUTPUT", "gpu_day_output"))


def save(step: str, **found: object) -> None:
    """Merge what a step found into results.json, which is whole whenever the process is killed."""
    path = output() / "results.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    report.setdefault(step, {}).update(found)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
    part.replace(path)
    print(step, json.dumps(found, default=str)[:600], flush=True)
