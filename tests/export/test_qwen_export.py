"""Exports of Qwen's families: what TensorRT-RTX builds of them, for all targets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from qwen_checkpoints import write_qwen_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime.backends.tensorrt.profiles import llm_profiles, picture_profiles
from divprune.runtime.cli.build import main
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import LIVE_LENGTH
from tests.export.rtx_builder import build_engine

SLOTS = 256


def export(folder: Path, name: str, target: str) -> Path:
    output = folder / "engine"
    path = write_qwen_checkpoint(folder / "checkpoint", name)
    fixed = {"keep": 0.3, "max_seq_len": SLOTS, "max_image_tokens": 64}
    export_model(ExportOptions(str(path), target=target, quant="int4", output=output, **fixed))
    assert EngineDirectory.open(output).manifest.verified
    return output


def test_every_engine_is_built_with_its_sizes_varying(tmp_path: Path) -> None:
    """With learned positions, and rows for early layers of the decoder."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    output = export(tmp_path, "qwen3-v5", "tensorrt-rtx")
    assert main([str(output), "--target-cc", "12.0", "-q"]) == 0
    (lane,) = (output / "engines").iterdir()
    engines = json.loads((lane / "record.json").read_text())["engines"]
    assert engines.keys() == {"vision", "selection", "llm"}
    assert engines["llm"]["profiles"] == ["decode", "pruned", "baseline"]


def test_graphs_for_jetpack_are_built_as_well(tmp_path: Path) -> None:
    """With attention in windows."""
    output = export(tmp_path, "qwen25-hub", "jetpack6")
    manifest = EngineDirectory.open(output).manifest
    pictures: list[Mapping[str, tuple[int, int, int]]] = [
        profile.sizes() for profile in picture_profiles(manifest, "vision")
    ]
    assert build_engine(output / manifest.graphs["vision"].path, 86, pictures)
    live = {LIVE_LENGTH: (1, SLOTS // 2, SLOTS)}
    rows = [{**profile.sizes(), **live} for profile in llm_profiles(manifest)]
    assert build_engine(output / manifest.graphs["llm"].path, 86, rows)
