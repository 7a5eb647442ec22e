"""Exports as ``divprune-export`` writes them, built ahead of time by the real TensorRT-RTX."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from divprune.runtime.cli.build import main
from divprune.runtime.directory.file_hash import hash_file
from tests.runtime.engine_copies import read_manifest

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.mark.parametrize("quant", [None, "int4-asym"])
def test_an_export_is_built_for_a_gpu_elsewhere_and_only_once(
    target_dir: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    quant: str | None,
) -> None:
    path = tmp_path / "engine"
    shutil.copytree(target_dir("tensorrt-rtx", "fp16", quant), path)
    assert main([str(path), "--target-cc", "8.9", "-q"]) == 0

    lane, files = path / "engines" / "tensorrt-rtx-sm89", read_manifest(path).files
    record = json.loads((lane / "record.json").read_text())
    assert record["surroundings"]["library_version"] == trt.__version__
    assert record["surroundings"]["compute_capability"] == "8.9"
    assert record["selection"] == "loop"
    graphs = {name: engine["graph"] for name, engine in record["engines"].items()}
    assert graphs == {"vision": "vision", "llm": "llm_tensorrt", "selection": "selection"}
    assert record["engines"]["llm"]["profiles"] == ["decode", "pruned", "baseline"]
    # Small weights, as int4 ones of a small model all are, lie in the graph itself.
    data = {name for name in files if name.startswith("llm/") and name.endswith(".data")}
    assert (quant is None) == bool(data)
    assert record["engines"]["llm"]["graph_files"].keys() == {"llm/model.tensorrt.onnx"} | data
    for engine in record["engines"].values():
        assert engine["size"] == (lane / engine["path"]).stat().st_size
        assert engine["sha256"] == hash_file(lane / engine["path"])
        for name, sha256 in engine["graph_files"].items():
            assert sha256 == files[name].sha256

    assert_that_a_second_call_does_nothing(path, lane, capsys)


def test_the_halves_of_a_decoder_that_prunes_inside_are_built(
    target_dir: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "engine"
    options = {"selector": "fastv", "layer": 1, "keep": 0.2}
    shutil.copytree(target_dir("tensorrt-rtx", "fp16", **options), path)
    assert main([str(path), "--target-cc", "89", "--dry-run", "--json"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["lanes"]
    assert planned["build"]
    assert not (path / "engines").exists()

    assert main([str(path), "--target-cc", "89", "-q"]) == 0
    lane = path / "engines" / "tensorrt-rtx-sm89"
    record, files = json.loads((lane / "record.json").read_text()), read_manifest(path).files
    graphs = {name: engine["graph"] for name, engine in record["engines"].items()}
    assert graphs == {
        "vision": "vision",
        "llm_front": "llm_front_tensorrt",
        "llm_back": "llm_back_tensorrt",
        "llm_selection": "llm_selection",
    }
    assert planned["engines"].keys() == graphs.keys()
    assert record["engines"]["llm_front"]["profiles"] == ["decode", "prompt"]
    assert record["engines"]["llm_back"]["profiles"] == ["decode", "pruned", "baseline"]
    for half in ("front", "back"):
        hashed = record["engines"][f"llm_{half}"]["graph_files"]
        data = {n for n in files if n.startswith(f"llm/{half}/") and n.endswith(".data")}
        assert hashed.keys() == {f"llm/{half}/model.tensorrt.onnx"} | data
    assert_that_a_second_call_does_nothing(path, lane, capsys)


def assert_that_a_second_call_does_nothing(
    path: Path, lane: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {file: file.stat().st_mtime_ns for file in lane.iterdir()}
    capsys.readouterr()
    assert main([str(path), "--target-cc", "8.9"]) == 0
    assert capsys.readouterr().out == "the engines are valid: nothing to do\n"
    assert {file: file.stat().st_mtime_ns for file in lane.iterdir()} == times
