"""The vision graph in three, for the selection kernel on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

pytest.importorskip("torch", reason="exporting needs torch")

from divprune.export.export_model import ExportOptions, export_model
from divprune.export.graphs import files as files_module
from divprune.export.output import cuda_graphs
from divprune.runtime.directory.engine_directory import EngineDirectory

NAMES = {"vision_features", "vision_similarities", "vision_rows"}


@pytest.fixture
def export(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., EngineDirectory]:
    def run(**options: object) -> EngineDirectory:
        chosen = {"keep": 0.3, "dtype": "fp16", "verify": False} | options
        source, output = str(checkpoint("clip-llama-hub")), tmp_path / "engine"
        export_model(ExportOptions(model=source, output=output, **chosen))
        return EngineDirectory.open(output)

    return run


def test_the_tower_has_no_weights_of_its_own(export, monkeypatch) -> None:
    monkeypatch.setattr(files_module, "_INLINE_BYTES", 1024)
    vision = export().path / "vision"
    assert [path.name for path in vision.glob("*.data")] == ["model.onnx.data"]
    tensors = onnx.load(vision / "features.onnx", load_external_data=False).graph.initializer
    files = {e.value for t in tensors for e in t.external_data if e.key == "location"}
    assert files == {"model.onnx.data"}


def test_nothing_is_chosen_in_any_of_the_three(export) -> None:
    directory = export()
    for name in NAMES:
        model = onnx.load(directory.file(directory.manifest.graphs[name].path))
        assert "Loop" not in {node.op_type for node in model.graph.node}


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "fp32"},
        {"quant": "int8"},
        {"vision_quant": "int8"},
        {"quant": "int4", "prefill_quant": "int8"},
        {"selector": "random"},
        {"target": "tensorrt"},
    ],
    ids=lambda options: " ".join(f"{name} {value}" for name, value in options.items()),
)
def test_there_are_none_where_cuda_or_the_kernel_cannot_run_them(export, options) -> None:
    assert not NAMES & export(**options).manifest.graphs.keys()


def test_there_are_none_for_more_tokens_than_the_kernel_holds(export, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MAX_TOKENS", 10)
    assert not NAMES & export().manifest.graphs.keys()
