"""Selection between decoder layers through the TensorRT backend, on stand-ins that compute.

Exports with their own graphs: caches in place (``tensorrt``) and written by the runtime
(``jetpack6``). What the stand-ins are told to do with addresses, shapes and slots decides the
token ids, which are compared with those of the ONNX Runtime backend on the same directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune.runtime import Pipeline
from divprune.runtime.backends.tensorrt import backend as tensorrt
from divprune.runtime.cli.bench import main as bench
from divprune.runtime.cli.build import main as build
from divprune.runtime.errors import BackendError
from tests.runtime.engine_copies import read_manifest
from tests.runtime.fake_machine import QUESTION, Machine, answer, picture

pytest.importorskip("onnxruntime")

VERSIONS = {"tensorrt": "10.16.1.11", "jetpack6": "10.3.0"}
SELECTORS: dict[str, dict[str, Any]] = {
    "greedyprune": {"keep": 0.2, "tau": 0.5},
    "fastv": {"keep": 0.2},
    "vtw": {"keep": None},
}


@pytest.fixture
def export(target_dir: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A function from selector and target to a copy of an export."""

    def copy(selector: str, target: str, **more: Any) -> Path:
        options = SELECTORS[selector] | {"selector": selector, "layer": 1} | more
        path = tmp_path / f"{selector}-{target}"
        return Path(shutil.copytree(target_dir(target, "fp16", **options), path))

    return copy


def machine_for(monkeypatch: pytest.MonkeyPatch, target: str, **script: Any) -> Machine:
    return Machine(monkeypatch, version=VERSIONS[target], **script)


def host_of(path: Path) -> Pipeline:
    return Pipeline.from_dir(path, backend="onnxruntime", threads=1)


@pytest.mark.parametrize("target", VERSIONS)
@pytest.mark.parametrize("selector", SELECTORS)
def test_answers_are_those_of_onnxruntime(monkeypatch, export, selector, target):
    path = export(selector, target)
    machine_for(monkeypatch, target)
    assert build([str(path), "-q"]) == 0
    host, device = host_of(path), Pipeline.from_dir(path)
    assert "TensorRT" in device.backend.name
    two = [picture(1), picture(2)]
    cases: list[dict[str, Any]] = [{}, {"keep": 1.0}, {"images": two}, {}]
    if selector != "vtw":
        cases.append({"keep": 0.06, "images": two})
    for options in cases:
        expected, found = answer(host, **options), answer(device, **options)
        assert found.token_ids == expected.token_ids
        assert found.images == expected.images
        assert found.prompt_tokens == expected.prompt_tokens
        assert (found.timings.selection is None) == (options.get("keep") == 1.0)


@pytest.fixture(params=VERSIONS)
def built(request, monkeypatch, export) -> tuple[Machine, Path]:
    path = export("fastv", request.param)
    machine = machine_for(monkeypatch, request.param)
    assert build([str(path), "-q"]) == 0
    machine.library.script.calls.clear()
    return machine, path


def test_halves_and_selection_run_in_turn_and_steps_become_one_launch(built):
    machine, path = built
    pipeline: Any = Pipeline.from_dir(path)
    result = answer(pipeline, images=[picture(1), picture(2)])
    assert machine.executed()[:6] == [
        ("vision", 0),
        ("vision", 0),
        ("front", 1),
        ("llm selection", 0),
        ("llm selection", 0),
        ("back", 1),
    ]
    # Eleven steps of two engines: the first as it is, the second recorded, the others launched.
    assert machine.executed()[6:] == [("front", 0), ("back", 0)] * 2
    assert machine.cuda.calls.count("launch graph") == 10
    front, back = pipeline.backend._decoder._parts
    removed = sum(image.num_image_tokens - image.num_kept for image in result.images)
    assert front.filled == result.prompt_tokens + 11
    assert front.filled - back.filled == removed > 0


def test_without_pruning_the_back_reads_what_the_front_wrote(built):
    machine, path = built
    answer(Pipeline.from_dir(path), keep=1.0, prompt=QUESTION * 10, max_new_tokens=1)
    # All N tokens: the front has one profile for prompts, the back takes the longer one.
    assert machine.executed() == [("vision", 0), ("front", 1), ("back", 2)]
    # The features of the picture into the prompt, and nothing between the halves.
    assert machine.cuda.calls.count("DeviceToDevice") == 1


def test_hidden_states_do_not_come_to_the_host(built):
    machine, path = built
    pipeline = Pipeline.from_dir(path)
    machine.cuda.calls.clear()
    answer(pipeline, max_new_tokens=1)
    # Broken rows of the picture, the order of selection, the best token.
    assert machine.cuda.calls.count("DeviceToHost") == 3


def test_a_step_is_one_launch_and_one_wait(built):
    machine, path = built
    pipeline: Any = Pipeline.from_dir(path)
    answer(pipeline, max_new_tokens=4)
    _, step = pipeline._prefiller._start(0, 0, None)
    step(5)
    machine.cuda.calls.clear()
    step(6)
    calls = machine.cuda.calls
    assert ("2D" in calls) == (read_manifest(path).dialect == "delta")
    assert [call for call in calls if call != "2D"] == ["launch graph", "synchronize"]


def test_the_halves_stay_together_where_memory_is_short(built):
    machine, path = built
    expected = answer(host_of(path)).token_ids
    machine.cuda.memory_bytes = tensorrt._MARGIN + 1000
    pipeline: Any = Pipeline.from_dir(path)
    for _ in range(2):
        assert answer(pipeline).token_ids == expected
    assert not pipeline.backend._engines.together
    assert sorted(pipeline.backend._engines._loaded) == ["llm_back", "llm_front", "llm_selection"]
    # Vision, and the three of the LLM, twice: not once for every token.
    loads = [call for call in machine.library.script.calls if call[0] == "deserialize"]
    assert len(loads) == 8


def test_halves_that_stream_their_weights_share_what_is_free(monkeypatch, export):
    path = export("fastv", "tensorrt")
    machine = machine_for(monkeypatch, "tensorrt", streamable_bytes=1 << 30)
    assert build([str(path), "-q", "--weight-streaming"]) == 0
    machine.cuda.memory_bytes = tensorrt._MARGIN + (64 << 20)
    pipeline: Any = Pipeline.from_dir(path)
    assert answer(pipeline).token_ids == answer(host_of(path)).token_ids
    engines = [pipeline.backend._engines.get(name) for name in ("llm_front", "llm_back")]
    assert all(engine.streams_weights for engine in engines)
    front, back = (engine._engine.weight_streaming_budget_v2 for engine in engines)
    assert 0 < front < back < 64 << 20  # one layer, and the other two with the output layer
    assert "capture" not in machine.cuda.calls


def test_without_the_baseline_the_back_has_room_for_kept_tokens_only(monkeypatch, export):
    path = export("fastv", "tensorrt", baseline=False)
    machine_for(monkeypatch, "tensorrt")
    assert build([str(path), "-q"]) == 0
    manifest = read_manifest(path)
    engine = json.loads((path / "engines/tensorrt-sm87/llm_back.engine").read_text())
    removed = manifest.selector.num_image_tokens - manifest.selector.num_kept
    assert len(engine["profiles"]) == 2
    assert engine["profiles"][1]["hidden_states"][2][1] == manifest.max_prefill_len - removed
    device = Pipeline.from_dir(path)
    assert answer(device).token_ids == answer(host_of(path)).token_ids


def test_a_full_cache_is_refused_before_anything_runs(built):
    machine, path = built
    manifest, backend = read_manifest(path), Pipeline.from_dir(path).backend
    rows = np.zeros((1, manifest.max_prefill_len, manifest.model.hidden_size), np.float16)
    positions = np.arange(rows.shape[1])[np.newaxis]
    backend.forward(rows, positions)
    machine.library.script.calls.clear()
    with pytest.raises(BackendError, match="the KV cache is full"):
        backend.prefill_pruned(rows, positions, [np.arange(9)], [5])
    assert machine.executed() == []


def test_divprune_bench_times_the_selection_as_a_part_of_prefill(built, capsys):
    _, path = built
    options = ["--warmup", "0", "--iters", "1", "--max-new-tokens", "3", "--json", "-q"]
    assert bench([str(path), *options]) == 0
    baseline, pruned = json.loads(capsys.readouterr().out)["runs"]
    assert baseline["stages"]["selection"] is None
    assert 0 < pruned["stages"]["selection"]["p50"] < pruned["stages"]["prefill"]["p50"]
