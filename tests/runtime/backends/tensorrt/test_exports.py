"""Exports for TensorRT targets, with their own graphs, through the backend on stand-ins.

The graphs of ``test_tensorrt.py`` are those for ONNX Runtime under other names; these are
what the devices get: new rows as outputs (``delta``), caches in place (``onnx``), int4.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from divprune.runtime import Pipeline
from divprune.runtime.cli.build import main as build
from tests.runtime.engine_copies import read_manifest
from tests.runtime.fake_machine import Machine, answer, picture

pytest.importorskip("onnxruntime")

EXPORTS = [
    ("jetpack6", "10.3.0", None),
    ("jetpack6", "10.3.0", "int4-asym"),
    ("tensorrt", "10.16.1.11", None),
    ("tensorrt", "10.16.1.11", "int4"),
]


@pytest.fixture(params=EXPORTS, ids=lambda export: f"{export[0]}-{export[2]}")
def built(
    request: pytest.FixtureRequest,
    target_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An export whose engines were built on the made-up machine."""
    target, version, quant = request.param
    path = tmp_path / "engine"
    shutil.copytree(target_dir(target, "fp16", quant), path)
    Machine(monkeypatch, version=version)
    assert build([str(path), "-q"]) == 0
    return path


def test_answers_are_those_of_onnxruntime(built):
    host = Pipeline.from_dir(built, backend="onnxruntime", threads=1)
    device = Pipeline.from_dir(built)
    assert "TensorRT" in device.backend.name
    for options in ({}, {"keep": 1.0}, {"keep": 0.04, "images": [picture(1), picture(2)]}):
        expected, found = answer(host, **options), answer(device, **options)
        assert found.token_ids == expected.token_ids
        assert found.images == expected.images


def test_a_sequence_that_overflowed_does_not_spoil_the_next(built):
    pipeline = Pipeline.from_dir(built)
    hidden = read_manifest(built).model.hidden_size
    expected = answer(pipeline).token_ids
    broken = np.full((1, 200, hidden), np.nan, np.float16)
    backend = pipeline.backend
    backend.reset()
    assert np.isnan(backend.forward(broken, np.arange(200)[np.newaxis]).numpy()).any()
    pipeline.forget()  # it does not know that its cache was written to
    assert answer(pipeline).token_ids == expected
