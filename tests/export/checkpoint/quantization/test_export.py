"""Exports with quantised weights: checked against the dequantised model, refused where wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from divprune.export.checkpoint.source import resolve_model
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.export_model import export_model
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import QuantInfo
from divprune.runtime.errors import CheckpointError, NumericalError
from divprune.runtime.pipeline import Pipeline

TIED = "siglip-qwen2-v4-tied"


def operators(path: Path) -> dict[str, int]:
    nodes = onnx.load(path, load_external_data=False).graph.node
    names = [node.op_type for node in nodes]
    return {name: names.count(name) for name in set(names)}


def export(checkpoint: Path, output: Path, **options: object) -> dict[str, float]:
    summary = export_model(
        ExportOptions(model=str(checkpoint), keep=0.1, output=output, **options)  # type: ignore[arg-type]
    )
    assert summary.verify_errors is not None
    return summary.verify_errors


@pytest.mark.parametrize(
    ("name", "quant", "dtype", "bound"),
    [
        (TIED, "int4-g32-asym", "fp32", 1e-5),
        ("clip-llama-v5-layers-biases", "int4", "fp16", 5e-3),
    ],
)
def test_int4_blocks_and_head_are_those_of_the_dequantised_model(
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    quant: str,
    dtype: str,
    bound: float,
) -> None:
    output = tmp_path / "engine"
    errors = export(checkpoint(name), output, quant=quant, quant_method="mse", dtype=dtype)
    assert errors["blocks"] < bound
    assert errors["head"] < bound
    found = operators(output / "llm" / "model.onnx")
    assert found["MatMulNBits"] == 3 * 7 + 1
    assert "MatMul" not in found
    manifest = EngineDirectory.open(output).manifest
    symmetric = quant == "int4"
    full = f"int4-g32-{'sym' if symmetric else 'asym'}"
    assert manifest.quant == QuantInfo(full, "mse", 4, 32, symmetric)


@pytest.mark.parametrize(
    ("target", "dtype", "bound"), [("tensorrt", "fp32", 1e-5), ("jetpack6", "fp16", 5e-3)]
)
def test_tensorrt_targets_hold_int4_and_correct_zero_points(
    checkpoint: Callable[[str], Path], tmp_path: Path, target: str, dtype: str, bound: float
) -> None:
    output = tmp_path / "engine"
    errors = export(checkpoint(TIED), output, quant="int4-asym", dtype=dtype, target=target)
    assert errors["blocks"] < bound
    assert errors["head"] < bound
    found = operators(output / "llm" / "model.onnx")
    assert found["DequantizeLinear"] == 3 * 7 + 1
    opset = EngineDirectory.open(output).manifest.graphs["llm"].opset
    assert opset == {"tensorrt": 24, "jetpack6": 21}[target]


def test_large_weights_are_split_by_outputs(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MiB holds every weight of so small a model: the limit is lowered by hand."""
    from divprune.export.planning import make_plan as plan_module

    def smaller(*arguments: object, **options: object) -> object:
        return WeightSource(*arguments, **{**options, "max_bytes": 3000})  # type: ignore[arg-type]

    monkeypatch.setattr(plan_module, "WeightSource", smaller)
    errors = export(checkpoint(TIED), tmp_path / "engine", quant="int4", dtype="fp32")
    assert max(errors["blocks"], errors["head"]) < 1e-5
    assert operators(tmp_path / "engine" / "llm" / "model.onnx")["Concat"] > 3


def test_int8_runs_and_both_towers_can_be_small(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "engine"
    errors = export(checkpoint("clip-llama-hub"), output, quant="int8", vision_quant="int8")
    assert 1e-3 < errors["vision"] < 0.1
    assert 1e-3 < errors["blocks"] < 0.05
    found = operators(output / "vision" / "model.onnx")
    assert found["MatMulInteger"] == 3 * 6  # the last of the four layers is not used
    manifest = EngineDirectory.open(output).manifest
    assert manifest.vision_quant == "int8"
    assert manifest.quant == QuantInfo("int8", "rtn", 8, None, symmetric=True)
    picture = Image.fromarray(np.full((56, 56, 3), 90, np.uint8))
    answer = Pipeline.from_dir(output).generate(picture, "What?", max_new_tokens=3)
    assert len(answer.result.token_ids) == 3


def test_a_prefill_graph_in_int8_fills_the_same_cache(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    export(checkpoint(TIED), one, dtype="fp32")
    errors = export(checkpoint(TIED), two, dtype="fp32", prefill_quant="int8")
    assert 1e-3 < errors["prefill"] < 0.05
    assert errors["head"] < 1e-5
    assert errors["blocks"] < 1e-5
    directory = EngineDirectory.open(two)
    spec = directory.manifest.graphs["llm_prefill"]
    assert spec.outputs == directory.manifest.graphs["llm"].outputs
    assert operators(two / spec.path)["MatMulInteger"] == 3 * 7  # not the output layer
    rows = np.random.default_rng(0).standard_normal((1, 9, directory.manifest.model.hidden_size))
    embeds, positions = rows.astype(np.float32), np.arange(9)[None]
    logits = []
    for path in (one, two):
        backend = Pipeline.from_dir(path).backend
        backend.reset()
        logits.append([backend.forward(embeds[:, :8], positions[:, :8])])
        logits[-1].append(backend.forward(embeds[:, 8:], positions[:, 8:]))
        backend.reset()
        logits[-1].append(backend.forward(embeds[:, :1], positions[:, :1]))
    for exact, found in zip(logits[0][:2], logits[1][:2], strict=True):
        assert 0 < np.linalg.norm(exact - found) / np.linalg.norm(exact) < 0.05
    np.testing.assert_array_equal(logits[0][2], logits[1][2])  # a single row never goes there


def test_groups_that_do_not_divide_are_refused_before_anything_is_written(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"groups of 64 do not divide(.|\n)*down_proj|96"):
        export(checkpoint("clip-llama-hub"), tmp_path / "engine", quant="int4-g64")
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_foreseen(checkpoint: Callable[[str], Path]) -> None:
    def foreseen(**options: object) -> int:
        given = ExportOptions(model=str(checkpoint(TIED)), keep=0.1, **options)  # type: ignore[arg-type]
        return make_plan(given, resolve_model(given.model)).estimated_bytes()

    assert foreseen(quant="int4") < foreseen(quant="int8") < foreseen() < foreseen(dtype="fp32")
    assert foreseen(quant="int8") < foreseen(quant="int4", prefill_quant="int8") < foreseen()


def test_a_wrong_zero_point_is_found_by_the_self_check(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from divprune.export.checkpoint.quantization import matmul_nbits

    right = matmul_nbits.pack_nibbles
    monkeypatch.setattr(matmul_nbits, "pack_nibbles", lambda zeros: right(zeros) ^ 1)
    with pytest.raises(NumericalError, match="decoder block 0"):
        export(checkpoint(TIED), tmp_path / "engine", quant="int4-asym")
    assert list(tmp_path.iterdir()) == []
