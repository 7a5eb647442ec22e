"""Exports of the families with tiles: limits, and what TensorRT builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anyres_checkpoints import write_anyres_checkpoint
from safetensors.numpy import load_file, save_file

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import CheckpointError, OptionError
from tests.export.rtx_builder import build_engine

BUILDS = [
    ("next-llama-hub", 86),
    ("next-llama-hub", 89),
    ("next-llama-hub", 120),
    ("next-video-llama-hub", 89),
    ("onevision-qwen2-hub", 89),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A new checkpoint, which a test may change."""
    return lambda name: write_anyres_checkpoint(tmp_path_factory.mktemp(name), name)


def export(path: Path, output: Path, **options: Any) -> Path:
    fixed = {"keep": 0.3, "dtype": "fp16", "verify": False, "output": output}
    export_model(ExportOptions(model=str(path), **{**fixed, **options}))
    return output


def test_a_checkpoint_without_a_newline_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    path = checkpoint("next-mistral-v5")
    tensors = load_file(path / "model.safetensors")
    del tensors["image_newline"]
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: image_newline \[64\]"):
        export(path, tmp_path / "engine")


def test_a_limit_below_every_grid_is_refused_with_the_smallest_that_works(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="--max-image-tokens 52"):
        export(checkpoint("next-mistral-v5"), tmp_path / "engine", max_image_tokens=20)


def test_a_limit_bounds_the_ranges_in_the_manifest(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    output = export(checkpoint("onevision-qwen2-hub"), tmp_path / "engine", max_image_tokens=60)
    manifest = EngineDirectory.open(output).manifest
    dims = manifest.dims
    assert dims["tokens"].maximum <= 60
    assert dims["kept"].maximum == round(0.3 * dims["tokens"].maximum)
    assert manifest.model.video_token_id == 471
    assert manifest.model.facts["video_token"] == "<video>"


@pytest.mark.parametrize("name, capability", BUILDS)
def test_tensorrt_builds_the_vision_graph_with_every_size_dynamic(
    name: str, capability: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    output = export(checkpoint(name), tmp_path / "engine", target="tensorrt-rtx")
    dims = EngineDirectory.open(output).manifest.dims
    profile = {key: (dim.minimum, dim.optimum, dim.maximum) for key, dim in dims.items()}
    assert build_engine(output / "vision" / "model.onnx", capability, [profile])
