"""Selection between decoder layers for TensorRT, pictures of any size.

InternVL with caches in place; Qwen3-VL with three positions a token, caches that the runtime
writes, and a plane that a layer behind the selection adds. Answers of ONNX Runtime on the same
graphs are those of transformers, answers on stand-ins for TensorRT and CUDA those of ONNX Runtime,
and TensorRT-RTX builds the graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch", reason="engine directories are exported here")

from divprune.runtime import Pipeline
from divprune.runtime.cli.build import main as build
from divprune.runtime.directory.manifest import DimRange
from tests.end_to_end.in_llm_reference import answer_inside
from tests.end_to_end.qwen_reference import QwenReference
from tests.end_to_end.test_inside_the_llm import fastv, greedy_prune
from tests.end_to_end.tiled_reference import TiledReference
from tests.export.rtx_builder import build_engine
from tests.runtime.backends.tensorrt.any_size_exports import write_export
from tests.runtime.engine_copies import copy_engine, read_manifest
from tests.runtime.fake_machine import Machine, answer
from tests.runtime.families.anyres_cases import noise

PROMPT = "What is in the picture?"
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "internvl": {"selector": "fastv", "layer": 1},
    "qwen3_vl": {"selector": "greedyprune", "layer": 1, "tau": 0.5, "max_image_tokens": 100},
}
VERSIONS = {"internvl": "10.16.1.11", "qwen3_vl": "10.3.0"}
CHOOSE = {"internvl": fastv(0.3), "qwen3_vl": greedy_prune(0.5, 0.3)}
WIDE, SQUARE, TINY = (90, 30), (64, 64), (7, 9)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a key of ``OPTIONS`` to its directory: copy it before changing anything."""
    folder = tmp_path_factory.mktemp("any-size-in-llm")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_export(path, name, **OPTIONS[name])

    return get


@pytest.mark.parametrize("name", OPTIONS)
def test_answers_are_those_of_onnxruntime(
    name: str, exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_engine(exported(name), tmp_path / name)
    machine = Machine(monkeypatch, version=VERSIONS[name])
    assert build([str(path), "-q"]) == 0
    host = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    device: Any = Pipeline.from_dir(path)
    for options in questions():
        expected, found = answer(host, **options), answer(device, **options)
        assert found.token_ids == expected.token_ids
        assert found.images == expected.images
        assert found.prompt_tokens == expected.prompt_tokens
        assert (found.timings.selection is None) == (options.get("keep") == 1.0)
    assert machine.cuda.calls.count("launch graph")
    front, back = device.backend._decoder._parts
    removed = sum(image.num_image_tokens - image.num_kept for image in found.images)
    assert front.filled - back.filled == removed > 0


@pytest.mark.parametrize("name", OPTIONS)
def test_graphs_for_tensorrt_answer_as_transformers_does(name: str, exported: Any) -> None:
    path = exported(name)
    checkpoint = path.with_name(f"{name}-checkpoint")
    is_qwen = name == "qwen3_vl"
    reference = QwenReference(checkpoint, 100) if is_qwen else TiledReference(checkpoint)
    pipeline = Pipeline.from_dir(path, backend="onnxruntime")
    for media in ([noise(WIDE, 1)], [noise(TINY, 4), noise(SQUARE, 5)]):
        found = pipeline.generate(media, PROMPT, max_new_tokens=8, ignore_eos=True).result
        expected = answer_inside(reference, media, PROMPT, 1, CHOOSE[name], found.token_ids)
        assert [list(image.kept_indices) for image in found.images] == expected.kept
        assert list(found.token_ids) == expected.token_ids


@pytest.mark.parametrize("name", OPTIONS)
def test_tensorrt_rtx_builds_both_halves_and_the_selection(name: str, exported: Any) -> None:
    path = exported(name)
    manifest = read_manifest(path)
    for half in manifest.llm_graphs:
        graph = manifest.graphs.get(f"{half}_tensorrt", manifest.graphs[half])
        longest = manifest.max_prefill_len
        assert build_engine(path / graph.path, 86, [(1, 1, 1), (1, 60, longest)])
    ranges = {n: (d.minimum, d.optimum, d.maximum) for n, d in manifest.dims.items()}
    assert build_engine(path / "llm" / "selection.onnx", 86, [ranges])


def questions() -> list[Mapping[str, Any]]:
    """Of all shapes, with all, some and few tokens kept; last two pictures of different size."""
    return [
        {"images": noise(WIDE, 1)},
        {"images": noise(TINY, 2), "keep": 1.0},
        {"images": noise(SQUARE, 3), "keep": 0.1},
        {"images": [noise(TINY, 4), noise(WIDE, 5)]},
    ]


def test_the_selection_is_built_for_the_sizes_of_pictures_and_again_for_others(
    exported: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy_engine(exported("internvl"), tmp_path / "internvl")
    Machine(monkeypatch, version=VERSIONS["internvl"])
    assert build([str(path), "-q"]) == 0
    dims = read_manifest(path).dims
    larger = dims | {"kept": DimRange(1, 2, dims["kept"].maximum + 1)}
    other = copy_engine(path, tmp_path / "other", dims=larger)
    assert build([str(other), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "llm_selection.engine was built for pictures of other sizes" in printed
    assert f"kept 1-{dims['kept'].maximum + 1} (best at 2), tokens" in printed
