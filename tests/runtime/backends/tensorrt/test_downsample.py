"""A selector with a second vision graph through the TensorRT backend, on stand-ins."""

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
from divprune.runtime.cli.build import main as build
from divprune.runtime.errors import NumericalError
from tests.runtime.fake_machine import Machine, answer, picture

pytest.importorskip("onnxruntime")

VERSIONS = {"tensorrt": "10.16.1.11", "jetpack6": "10.3.0"}


@pytest.fixture(params=VERSIONS)
def built(
    request: pytest.FixtureRequest,
    target_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Machine, Path]:
    path = tmp_path / "engine"
    shutil.copytree(target_dir(request.param, "fp16", selector="downsample", keep=0.2), path)
    machine = Machine(monkeypatch, version=VERSIONS[request.param])
    assert build([str(path), "-q"]) == 0
    machine.library.script.calls.clear()
    return machine, path


def test_answers_are_those_of_onnxruntime_and_the_full_graph_is_loaded_when_needed(built):
    machine, path = built
    record = json.loads((path / "engines/tensorrt-sm87/record.json").read_text())
    assert sorted(record["engines"]) == ["full", "llm", "selection", "vision"]
    host: Any = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    device: Any = Pipeline.from_dir(path)
    two = [picture(1), picture(2)]
    cases: list[tuple[int, dict[str, Any]]] = [(2, {}), (3, {"keep": 1.0}), (3, {"images": two})]
    for engines, options in cases:
        expected, found = answer(host, **options), answer(device, **options)
        assert found.token_ids == expected.token_ids
        assert found.images == expected.images
        loads = [call for call in machine.library.script.calls if call[0] == "deserialize"]
        assert len(loads) == engines


def test_engines_take_turns_where_memory_is_short(built):
    machine, path = built
    host = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    machine.cuda.memory_bytes = tensorrt._MARGIN + 1000
    device: Any = Pipeline.from_dir(path)
    for options in ({"keep": 1.0}, {}):
        assert answer(device, **options).token_ids == answer(host, **options).token_ids
    assert list(device.backend._engines._loaded) == ["llm"]


@pytest.mark.parametrize(("keep", "tokens"), [(None, 9), (1.0, 50)])
def test_rows_that_are_not_finite_are_counted_on_the_device(built, monkeypatch, keep, tokens):
    machine, path = built
    pipeline: Any = Pipeline.from_dir(path)
    encode = pipeline.backend.encode_image
    monkeypatch.setattr(
        pipeline.backend,
        "encode_image",
        lambda inputs: encode({name: np.full_like(each, np.nan) for name, each in inputs.items()}),
    )
    machine.cuda.calls.clear()
    with pytest.raises(NumericalError, match=f"{tokens} of {tokens} tokens are not finite"):
        answer(pipeline, keep=keep)
    # Counts and orders come to the host, features do not.
    assert machine.cuda.calls.count("DeviceToHost") == (1 if keep is None else 2)
