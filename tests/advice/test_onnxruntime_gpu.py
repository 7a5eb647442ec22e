"""Advice about onnxruntime-gpu, with ONNX Runtime's own CPU under the name of CUDA."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from divprune.runtime.backends.onnxruntime import session
from tests.advice.covered import GPU
from tests.advice.test_packages import brought_by
from tests.advice.tools import Refusal, assert_gave, attempt, follow, refused
from tests.runtime.fake_onnxruntime_gpu import install

ort = pytest.importorskip("onnxruntime")


def both_ways(words: list[str], refusal: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the CPU, as the advice ends, and then for CUDA with what it says is to be there."""
    _, option, device = refusal.fix.rpartition("--device")
    assert attempt([*words[: words.index("--device")], option, device.strip()]).code == 0
    install(monkeypatch)
    assert attempt(words).code == 0


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this one has CUDA"
)
def test_the_package_for_cuda_or_the_cpu_runs(target_dir, run_words, monkeypatch):
    words = run_words(target_dir("onnxruntime", "fp16"), "--device", "cuda")
    refusal = attempt(words)
    assert_gave(refusal, GPU["an onnxruntime without CUDA"])
    _, _, command = refusal.fix.partition(" && ")
    assert "onnxruntime-gpu" in brought_by(command)
    both_ways(words, refusal, monkeypatch)


def test_cuda_libraries_or_the_cpu_run(target_dir, run_words, monkeypatch):
    install(monkeypatch, starts=False)
    words = run_words(target_dir("onnxruntime", "fp16"), "--device", "cuda")
    refusal = attempt(words)
    assert_gave(refusal, GPU["an onnxruntime-gpu without its libraries"])
    assert brought_by(refusal.fix)["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
    both_ways(words, refusal, monkeypatch)


def test_the_export_for_cuda_or_the_cpu_runs(engine_dir, run_words, tmp_path, monkeypatch):
    install(monkeypatch)
    words = run_words(shutil.copytree(engine_dir, tmp_path / "engine"), "--device", "cuda")
    refusal = attempt(words)
    assert_gave(refusal, GPU["a precision without kernels"])
    assert attempt(follow(words, refusal)).code == 0
    assert attempt([*words[: words.index("--device")], "--device", "cpu"]).code == 0
    assert refusal.fix.endswith("or ask for --device cpu")


def test_the_export_for_onnxruntime_runs(target_dir, run_words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    install(monkeypatch)
    words = run_words(
        target_dir("jetpack6", "fp16"), "--device", "cuda", "--backend", "onnxruntime"
    )
    refusal = attempt(words)
    assert_gave(refusal, GPU["a dialect of another device"])
    assert attempt(follow(words, refusal)).code == 0


def test_the_advised_commands_leave_one_whole_onnxruntime(tmp_path):
    """After both packages were installed, one over the other: they have the same files."""
    wheels, folder = tmp_path / "wheels", tmp_path / "environment"
    wheels.mkdir()
    write_wheel(wheels, "onnxruntime", {"onnxruntime/__init__.py": "HAS_CUDA = False"})
    write_wheel(wheels, "onnxruntime-gpu", {"onnxruntime/__init__.py": "HAS_CUDA = True"})
    needs = "Provides-Extra: gpu\nRequires-Dist: onnxruntime-gpu; extra == 'gpu'\n"
    write_wheel(wheels, "divprune-edge", {}, needs)
    venv.create(folder, symlinks=True)

    def shell(command: str) -> str:
        pip = f"{sys.executable} -m pip --python {folder}/bin/python -q --no-input"
        function = f'pip() {{ what=$1; shift; {pip} "$what" $([ "$what" = install ] && echo'
        function += f' --no-index --find-links {wheels}) "$@"; }}\n'
        done = subprocess.run(
            ["sh", "-c", function + command], capture_output=True, text=True, check=True
        )
        return done.stdout

    look = f"{folder}/bin/python -c 'import onnxruntime; print(onnxruntime.HAS_CUDA)'"
    both = "pip install onnxruntime-gpu && pip install onnxruntime"
    assert shell(f"{both} && {look}") == "False\n"
    fix = refused(cpu_only_for_cuda).fix
    command, _, _ = fix.partition(", or ask for")
    assert shell(f"{command} && {look}") == "True\n"


def cpu_only_for_cuda() -> None:
    library: Any = SimpleNamespace(get_available_providers=lambda: ["CPUExecutionProvider"])
    session._require_provider(library, "cuda", 'pip install "divprune-edge[gpu]"')


def write_wheel(folder: Path, name: str, files: dict[str, str], needs: str = "") -> None:
    """A wheel of version 2.0 that pip takes."""
    stem = f"{name.replace('-', '_')}-2.0"
    about = f"{stem}.dist-info"
    content = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*content, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in (content | {f"{about}/RECORD": record}).items():
            wheel.writestr(path, text)
