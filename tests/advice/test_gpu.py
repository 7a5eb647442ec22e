"""Advice about kernels and CUDA, on stand-ins for what is not here.

A driver that runs the kernels on the host, and CUDA on host memory; NVRTC and the selection of a
graph are the real ones.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement

from divprune.plugins import compile_ptx, nvrtc, ptx
from divprune.plugins import driver as driver_module
from divprune.plugins.driver import Driver, GreedyMaxMinKernel
from divprune.plugins.node import MAX_TOKENS, plan_launch
from divprune.runtime.backends.cuda import kernels
from divprune.runtime.backends.cuda.cuda import Cuda, open_cuda
from divprune.runtime.backends.cuda.kernels import LoadedKernels
from divprune.runtime.backends.tensorrt import backend as tensorrt
from divprune.runtime.errors import BackendError
from tests.advice.covered import GPU
from tests.advice.test_packages import brought_by
from tests.advice.tools import Refusal, assert_gave, attempt, refused
from tests.plugins.emulator import EmulatedDriver
from tests.plugins.kernel_runner import KernelRunner
from tests.runtime.backends.tensorrt.test_backend import write_directory
from tests.runtime.fake_cuda import FakeCuda, FakeKernels
from tests.runtime.fake_machine import Machine
from tests.runtime.fake_onnxruntime_gpu import install

ort = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDriver:
    return EmulatedDriver(tmp_path_factory.mktemp("driver"))


# Kernels


def check_kernel(driver: Driver) -> None:
    """The greedy kernel chooses as it should."""
    gram = np.eye(5, dtype=np.float32)
    gram[1, 3] = gram[3, 1] = 0.5
    assert KernelRunner(driver).order(gram, 1, 5) == [1, 0, 2, 4, 3]


def test_clusters_are_left_where_a_gpu_has_none(driver, target_dir, run_words, monkeypatch):
    install(monkeypatch)
    monkeypatch.setattr(driver_module, "Driver", lambda: driver)
    monkeypatch.setenv("DIVPRUNE_SELECTION_BLOCKS", "cluster")
    words = run_words(target_dir("onnxruntime", "fp16"), "--device", "cuda")
    driver.set_capability(87)
    try:
        refusal = attempt(words)
        assert_gave(refusal, GPU["a GPU without clusters"])
        monkeypatch.setenv(*refusal.fix.split("="))
        assert attempt(words).code == 0
    finally:
        driver.set_capability(90)


def test_a_driver_that_was_updated_takes_the_kernels(
    driver, engine_dir, run_words, tmp_path, monkeypatch
):
    machine, path = Machine(monkeypatch), write_directory(engine_dir, tmp_path / "e", "onnx")

    def load(driver: Driver) -> FakeKernels:
        LoadedKernels(driver)
        return FakeKernels(machine.cuda)  # which run with the rest of it

    monkeypatch.setattr(tensorrt, "Driver", lambda: driver)
    monkeypatch.setattr(tensorrt, "LoadedKernels", load)
    assert attempt(["divprune-build", str(path), "-q"]).code == 0
    words = run_words(path, "--device", "cuda")
    driver.set_newest_ptx(8.4)
    try:
        assert_gave(attempt(words), GPU["an old driver"])
        driver.set_newest_ptx(9.0)
        assert attempt(words).code == 0
    finally:
        driver.set_newest_ptx(8.5)


def test_a_machine_with_a_driver_runs_the_kernel(driver, monkeypatch):
    load = ctypes.CDLL
    found: dict[str, str] = {}

    def open_library(name: str, *arguments: Any, **options: Any) -> ctypes.CDLL:
        if name == "libcuda.so.1" and name not in found:
            raise OSError(f"{name}: cannot open shared object file")
        return load(found.get(name, name), *arguments, **options)

    monkeypatch.setattr(ctypes, "CDLL", open_library)
    assert_gave(refused(Driver), GPU["no driver"])
    found["libcuda.so.1"] = str(driver.path)
    check_kernel(Driver())


def test_more_tokens_than_the_kernel_holds_are_selected_by_the_loop(driver):
    from divprune.export.selection import get_selector
    from divprune.export.selection.contract import selection_model
    from divprune.export.selection.divprune import DivPrune

    ir = pytest.importorskip("onnx_ir")
    count = MAX_TOKENS + 1
    kernel = GreedyMaxMinKernel(driver)
    launch = lambda: kernel.launch(0, 0, 0, 0, num_tokens=count, num_kept=4)  # noqa: E731
    refusal = refused(launch)
    assert_gave(refusal, GPU["more tokens than the kernel holds"])
    assert "ONNX Loop" in refusal.fix
    features = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    graph = ir.to_proto(selection_model(get_selector("divprune"), features, 4, {}))
    assert any(node.op_type == "Loop" for node in graph.graph.node)
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (order,) = session.run(["selection_order"], {"image_features": features})
    np.testing.assert_array_equal(order, DivPrune().select_covered(features, 4)[0])
    assert plan_launch(MAX_TOKENS, 4)


# The compiler


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of our own of the kernels."""
    try:
        nvrtc.Nvrtc()
    except BackendError as error:
        pytest.skip(f"{error.what}: {error.fix}")
    folder = tmp_path / "an installation"
    folder.mkdir()
    for each in [*ptx.SHIPPED[0].source.parent.glob("*.cu*"), kernels.SOURCE_FILE]:
        shutil.copy(each, folder)
    shipped = [
        replace(each, source=folder / each.source.name, ptx=folder / each.ptx.name)
        for each in ptx.SHIPPED[:1]
    ]
    monkeypatch.setattr(compile_ptx, "SHIPPED", tuple(shipped))
    monkeypatch.setattr(compile_ptx, "SOURCE_FILE", folder / ptx.SOURCE_FILE.name)
    monkeypatch.setattr(ptx, "PTX_FILE", folder / ptx.PTX_FILE.name)
    monkeypatch.setattr(kernels, "SOURCE_FILE", folder / kernels.SOURCE_FILE.name)
    monkeypatch.setattr(kernels, "PTX_FILE", folder / kernels.PTX_FILE.name)
    return folder


def compile_as(command: str) -> int:
    """Run ``python -m divprune.plugins.compile_ptx`` with the options of the command."""
    program, *options = re.split(r"(?<=compile_ptx)", command.partition("python -m ")[2])
    assert program == "divprune.plugins.compile_ptx"
    return compile_ptx.main(shlex.split(options[0]))


def test_kernels_that_are_missing_are_compiled(sources, driver):
    refusal = refused(lambda: GreedyMaxMinKernel(driver))
    assert_gave(refusal, GPU["a kernel that is missing"])
    assert compile_as(refusal.fix) == 0
    GreedyMaxMinKernel(driver)
    refusal = refused(lambda: LoadedKernels(driver))
    assert_gave(refusal, GPU["the reductions that are missing"])
    assert compile_as(refusal.fix) == 0
    LoadedKernels(driver)


@pytest.mark.parametrize(
    "options",
    ["", "--source 'an installation/kernels.cu'", "--output other.ptx"],
)
def test_what_was_changed_is_compiled_again(sources, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    check = [*shlex.split(options), "--check"]
    with pytest.MonkeyPatch.context() as patch:
        said = refused(lambda: raised_by(patch, check))
    assert_gave(said, GPU["a kernel that was changed"])
    assert compile_as(said.fix) == 0
    assert compile_ptx.main(check) == 0


def raised_by(patch: pytest.MonkeyPatch, options: list[str]) -> None:
    """Run the compiler's tool; its error as it is raised."""
    patch.setattr(compile_ptx, "run_guarded", lambda call: call())
    compile_ptx.main(options)


def test_the_wheel_named_brings_the_compiler(sources, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(importlib.util, "find_spec", lambda _: None)
        refusal = refused(nvrtc.Nvrtc)
    check_compiler(refusal, "no compiler")


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_the_wheel_named_is_of_the_version_that_is_wanted(sources, tmp_path, monkeypatch):
    source, library = tmp_path / "nvrtc.c", tmp_path / "lib" / "libnvrtc.so.12"
    library.parent.mkdir()
    source.write_text(
        "int nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 8; return 0; }\n"
        'const char *nvrtcGetErrorString(int code) { return "none"; }\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    folder = SimpleNamespace(submodule_search_locations=[tmp_path])
    with monkeypatch.context() as newer:
        newer.setattr(importlib.util, "find_spec", lambda _: folder)
        refusal = refused(nvrtc.Nvrtc)
    check_compiler(refusal, "another compiler")


def check_compiler(refusal: Refusal, name: str) -> None:
    """The wheel of the advice is the one that is installed here, and compiles."""
    assert_gave(refusal, GPU[name])
    ((package, requirement),) = brought_by(refusal.fix).items()
    assert version(package) in requirement.specifier
    assert nvrtc.Nvrtc().version == nvrtc.NVRTC_VERSION


# CUDA


class OldDriver(FakeCuda):
    """What cuda-python 13 gives on JetPack 6."""

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (35,)


class NoDriver(FakeCuda):
    """What cuda-python 12.6.2 does without a driver."""

    def cudaSetDevice(self, device: int) -> tuple[int]:
        raise RuntimeError("Failed to dlopen libcuda.so")


RUNTIME = "cuda.bindings.runtime"


@pytest.mark.parametrize(
    ("case", "installed"), [("no cuda-python", None), ("a newer cuda-python", OldDriver())]
)
def test_cuda_python_of_any_cuda_opens_the_gpu(monkeypatch, case, installed):
    monkeypatch.setitem(sys.modules, RUNTIME, installed)
    refusal = refused(open_cuda)
    assert_gave(refusal, GPU[case])
    asked = [Requirement(each) for each in re.findall(r'"([^"]+)"', refusal.fix)]
    assert {each.name for each in asked} == {"cuda-python"}
    for here, fits in {"12.6.2": [0, 1], "12.9.0": [1], "13.0.1": [2]}.items():
        assert [place for place, each in enumerate(asked) if here in each.specifier] == fits
    monkeypatch.setitem(sys.modules, RUNTIME, FakeCuda())
    assert isinstance(open_cuda(), Cuda)


def test_cuda_python_opens_the_gpu_where_there_is_a_driver(monkeypatch):
    monkeypatch.setitem(sys.modules, RUNTIME, NoDriver())
    refusal = refused(open_cuda)
    assert_gave(refusal, GPU["cuda-python without a driver"])
    assert refusal.fix == "run on a machine with an NVIDIA GPU and its driver"
    monkeypatch.setitem(sys.modules, RUNTIME, FakeCuda())
    assert isinstance(open_cuda(), Cuda)


def test_every_case_is_followed_by_one_of_the_two_files():
    files = (Path(__file__), Path(__file__).with_name("test_onnxruntime_gpu.py"))
    text = "".join(file.read_text() for file in files)
    assert [name for name in GPU if f'"{name}"' not in text] == []
