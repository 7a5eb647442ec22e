"""Exports of InternVL and SmolVLM: refusals, ranges, precisions, and what TensorRT builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiled_checkpoints import write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import OptionError, UnsupportedError
from tests.export.rtx_builder import build_engine

ONE_EACH = ["internvl-qwen2-hub", "smolvlm-llama"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """A new checkpoint, which a test may change."""
    return lambda name: write_tiled_checkpoint(tmp_path / name, name)


def export(path: Path, **options: Any) -> Path:
    output = path.with_name("engine-" + "-".join(map(str, options.values())))
    fixed = {"keep": 0.3, "dtype": "fp16", "verify": False, "max_seq_len": 512, "output": output}
    export_model(ExportOptions(model=str(path), **{**fixed, **options}))
    return output


def change(path: Path, file: str, **changes: Any) -> Path:
    content = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(content | changes))
    return path


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_limit_bounds_the_ranges_in_the_manifest(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    path = checkpoint(name)
    manifest = EngineDirectory.open(export(path, max_image_tokens=21)).manifest
    assert manifest.dims["tokens"].maximum == 20
    assert manifest.dims["crops"].maximum == 5
    assert manifest.dims["kept"].maximum == 6
    assert manifest.selector.num_image_tokens == 20
    with pytest.raises((OptionError, UnsupportedError), match="--max-image-tokens 4"):
        export(path, max_image_tokens=3)


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt-rtx", "jetpack6"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_int4_exports_check_themselves(
    name: str, target: str, checkpoint: Callable[[str], Path]
) -> None:
    output = export(checkpoint(name), target=target, quant="int4-g32", verify=True)
    assert EngineDirectory.open(output).manifest.verified


@pytest.mark.parametrize("capability", [86, 89, 120])
@pytest.mark.parametrize("name", ONE_EACH)
def test_tensorrt_builds_the_vision_graph_with_every_size_dynamic(
    name: str, capability: int, checkpoint: Callable[[str], Path]
) -> None:
    output = export(checkpoint(name), target="tensorrt-rtx")
    dims = EngineDirectory.open(output).manifest.dims
    profile = {key: (dim.minimum, dim.optimum, dim.maximum) for key, dim in dims.items()}
    assert build_engine(output / "vision" / "model.onnx", capability, [profile])
