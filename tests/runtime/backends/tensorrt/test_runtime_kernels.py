"""What TensorRT-RTX is told at run time, on a stand-in and against its real bindings.

Its engines load on a GPU only: no context of the real library can be made here.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from divprune.runtime.backends.tensorrt import engine_file
from divprune.runtime.backends.tensorrt.library import TensorRT
from divprune.runtime.backends.tensorrt.runtime_kernels import RuntimeKernels
from tests.runtime.fake_tensorrt import FakeTensorRT, Script, _Engine

CONTENT = {"graph": "llm/model.onnx", "names": {"inputs": [], "outputs": []}, "profiles": []}


class Loaded:
    def __init__(self, path: Path, name: str = "tensorrt-rtx", compiles: bytes = b"") -> None:
        module = FakeTensorRT(Script(compiles=compiles))
        library = TensorRT(name, "1.7.1", module)
        self.calls = module.script.calls
        self.kernels = RuntimeKernels(library, _Engine(module, CONTENT), path)


def test_decode_waits_for_its_kernels_and_prefill_does_not(tmp_path):
    loaded = Loaded(tmp_path / "llm.engine")
    for profile in (0, 1):
        assert loaded.kernels.make_context(profile)
    assert [call[2] for call in loaded.calls if call[0] == "context"] == ["EAGER", "LAZY"]


def test_tensorrt_itself_needs_none_of_it(tmp_path):
    loaded = Loaded(tmp_path / "llm.engine", "tensorrt")
    assert loaded.kernels.make_context(0)
    assert loaded.calls == [("context", "llm")]
    del loaded
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_kernels_are_kept_beside_the_engine_for_the_next_process(tmp_path):
    engine, kept = tmp_path / "llm.engine", tmp_path / "llm.kernels"
    Loaded(engine, compiles=b"one;").kernels.make_context(0)
    gc.collect()
    assert kept.read_bytes() == b"kernels:one;"

    before = kept.stat().st_mtime_ns
    Loaded(engine).kernels.make_context(0)  # nothing new
    gc.collect()
    assert kept.stat().st_mtime_ns == before
    Loaded(engine, compiles=b"two;").kernels.make_context(0)
    gc.collect()
    assert kept.read_bytes() == b"kernels:one;two;"
    assert [path.name for path in tmp_path.iterdir()] == ["llm.kernels"]


def test_kernels_of_another_driver_are_compiled_anew(tmp_path):
    kept = tmp_path / "llm.kernels"
    kept.write_bytes(b"of another driver")
    Loaded(tmp_path / "llm.engine", compiles=b"new;").kernels.make_context(0)
    gc.collect()
    assert kept.read_bytes() == b"kernels:new;"


def test_a_directory_that_cannot_be_written_to_is_no_error(tmp_path):
    loaded = Loaded(tmp_path / "gone" / "llm.engine", compiles=b"new;")
    loaded.kernels.make_context(0)
    del loaded
    gc.collect()
    assert not (tmp_path / "gone").exists()


def test_the_real_bindings_have_what_is_asked_of_them():
    trt = pytest.importorskip("tensorrt_rtx")
    assert trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED
    assert trt.BuilderFlag.REQUIRE_USER_ALLOCATION
    assert hasattr(trt.ICudaEngine, "create_runtime_config")
    for name in (
        "set_execution_context_allocation_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
        "create_runtime_cache",
        "set_runtime_cache",
    ):
        assert hasattr(trt.IRuntimeConfig, name)
    assert hasattr(trt.IRuntimeCache, "serialize")
    assert hasattr(trt.IRuntimeCache, "deserialize")
    assert {"SET", "CUR", "END"} <= set(dir(trt.SeekPosition))


def test_an_engine_is_read_in_pieces_from_anywhere(tmp_path, monkeypatch):
    """The base class of the real bindings opens the CUDA driver: only its stand-in runs here."""
    module = FakeTensorRT()
    (tmp_path / "x.engine").write_bytes(b"an engine")
    with (tmp_path / "x.engine").open("rb") as file:
        reader = engine_file._make_stream_reader(TensorRT("tensorrt", "10.7.0", module), file)
        assert reader.read(4, 0) == b"an e"
        assert reader.seek(-4, module.SeekPosition.END)
        assert reader.read(100, 0) == b"gine"
        assert reader.seek(3, module.SeekPosition.SET)
        assert reader.seek(1, module.SeekPosition.CUR)
        monkeypatch.setattr(engine_file, "_PIECE", 3)
        assert reader.read(100, 0) == b"ngi"
        assert not reader.seek(-1, module.SeekPosition.SET)
    with pytest.raises(OSError, match="Invalid argument"):
        reader.reraise()
