"""What the CUDA provider cannot compute is refused by name before a session is opened."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.backends.onnxruntime.loading import load, load_selection
from divprune.runtime.backends.onnxruntime.session import require_precision
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest_records import QuantInfo
from divprune.runtime.errors import BackendError

ort = pytest.importorskip("onnxruntime")

INT4 = QuantInfo("int4", "rtn", 4, 32, symmetric=True)
INT8 = QuantInfo("int8", "rtn", 8, None, symmetric=True)


@pytest.fixture(scope="module")
def directory(engine_dir: Path) -> EngineDirectory:
    return EngineDirectory.open(engine_dir)


def exported(directory: EngineDirectory, **changes: Any) -> EngineDirectory:
    manifest = replace(directory.manifest, **{"dtype": "fp16", **changes})
    return replace(directory, manifest=manifest)


@pytest.mark.parametrize(
    "changes, found",
    [
        ({"quant": INT8}, "--quant int8"),
        ({"vision_quant": "int8"}, "--vision-quant int8"),
        ({"quant": INT4, "prefill_quant": "int8"}, "--prefill-quant int8"),
        ({"dtype": "fp32"}, "--dtype fp32"),
        (
            {"dtype": "fp32", "quant": INT4, "prefill_quant": "int8", "vision_quant": "int8"},
            "--vision-quant int8 and --prefill-quant int8 and --dtype fp32",
        ),
    ],
)
def test_what_cuda_has_no_kernels_for_is_refused_by_name(directory, changes, found):
    with pytest.raises(BackendError) as caught:
        require_precision(exported(directory, **changes))
    assert not exported(directory, **changes).manifest.runs_on_cuda
    assert caught.value.what == f"ONNX Runtime has no CUDA kernels for {found}"


@pytest.mark.parametrize(
    "changes",
    [{}, {"quant": INT4}, {"dtype": "fp32", "dialect": "onnx", "target": "tensorrt"}],
)
def test_what_cuda_computes_is_let_through(directory, changes):
    require_precision(exported(directory, **changes))
    assert exported(directory, **changes).manifest.runs_on_cuda


@pytest.mark.parametrize("open_it", [load, load_selection])
def test_it_is_refused_before_a_session_is_opened(directory, monkeypatch, open_it):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a session was opened")

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(BackendError, match="no CUDA kernels for --dtype fp32"):
        open_it(directory, device="cuda", threads=None)


def test_the_fix_is_a_command_that_exports_a_directory_cuda_can_run(
    target_dir: Callable[..., Path], checkpoint: Callable[[str], Path]
) -> None:
    from divprune.export.cli import main

    path = target_dir("onnxruntime", "fp32", "int8", vision_quant="int8")
    with pytest.raises(BackendError) as caught:
        require_precision(EngineDirectory.open(path))
    command, _, _ = str(caught.value.fix).partition(", or ask for")
    program, *arguments = shlex.split(command)
    assert program == "divprune-export"
    # The manifest of a local checkpoint has its name alone.
    arguments[arguments.index("--model") + 1] = str(checkpoint("clip-llama-v4-gqa2-full"))
    assert main(arguments) == 0

    mended = EngineDirectory.open(path.with_name(f"{path.name}-cuda"))
    require_precision(mended)
    assert mended.manifest.selector == EngineDirectory.open(path).manifest.selector


def test_cuda_libraries_are_loaded_before_the_first_session_and_say_nothing_on_stdout(
    directory, monkeypatch, capsys
):
    happened = []

    def preload() -> None:
        print("could not load libcudnn.so.9")
        happened.append("preload")

    def open_session(*_: object, **__: object) -> None:
        happened.append("session")
        raise RuntimeError("no GPU")

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: both)
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", open_session)
    with pytest.raises(BackendError, match="refuses"):
        load(exported(directory), device="cuda", threads=None)
    assert happened[:2] == ["preload", "session"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "libcudnn" in captured.err
    monkeypatch.delattr(ort, "preload_dlls")
    with pytest.raises(BackendError, match="refuses"):
        load(exported(directory), device="cuda", threads=None)


def test_nothing_is_preloaded_for_the_cpu(directory, monkeypatch):
    happened: list[str] = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: happened.append("preload"), raising=False)
    load(directory, device="cpu", threads=1)
    assert not happened
