"""Advice about builds of engines: with the real TensorRT-RTX, or on stand-ins for a device."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from divprune.runtime.backends.tensorrt.build import build_plan
from divprune.runtime.directory.export_command import export_command
from tests.advice.covered import ENGINES
from tests.advice.test_packages import brought_by
from tests.advice.tools import assert_gave, attempt, build, follow
from tests.runtime.engine_copies import copy_engine, read_manifest
from tests.runtime.fake_machine import ORIN, Machine
from tests.runtime.fake_tensorrt import ParserError

pytest.importorskip("onnxruntime")


# Where engines are written


def test_engines_fit_once_there_is_space_or_on_another_disk(machine, engine, tmp_path, monkeypatch):
    def usage(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=1 << 40 if "other" in Path(path).parts else 10)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert_gave(attempt(build(engine)), ENGINES["a disk that is full"])
    (tmp_path / "other").mkdir()
    moved = Path(shutil.copytree(engine, tmp_path / "other" / "engine"))
    assert attempt(build(moved)).code == 0
    monkeypatch.undo()
    Machine(monkeypatch)
    assert attempt(build(engine)).code == 0


def test_a_copy_of_ones_own_is_written_to(machine, engine, tmp_path, monkeypatch):
    make = Path.mkdir

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if path.is_relative_to(engine) and not path.exists():
            raise PermissionError(13, "Permission denied", str(path))
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_gave(attempt(build(engine)), ENGINES["a directory of somebody else"])
    copy = Path(shutil.copytree(engine, tmp_path / "my own"))
    assert attempt(build(copy)).code == 0


def test_a_file_in_the_engines_place_is_called_otherwise(machine, engine):
    (engine / "engines").write_text("notes")
    refusal = attempt(build(engine))
    assert_gave(refusal, ENGINES["a file called engines"])
    _, _, command = refusal.fix.partition(": ")
    subprocess.run(command, shell=True, check=True)
    assert Path("NAME").read_text() == "notes"
    assert attempt(build(engine)).code == 0


# Building


@pytest.mark.parametrize(
    ("case", "workspace", "script"),
    [
        ("no memory to build in", 512, {"builder_bytes": 300 << 20}),
        ("too little workspace", 16, {"kernel_bytes": 200 << 20}),
    ],
)
def test_the_workspace_advised_builds(engine, monkeypatch, case, workspace, script):
    Machine(monkeypatch, **script)
    words = build(engine, "--workspace", str(workspace))
    refusal = attempt(words)
    assert_gave(refusal, ENGINES[case])
    assert attempt(follow(words, refusal)).code == 0


def test_no_smaller_workspace_is_advised_than_can_be_given(engine, monkeypatch):
    machine = Machine(monkeypatch, builder_bytes=1 << 20)
    words = build(engine, "--workspace", "20")
    refusal = attempt(words)
    assert_gave(refusal, ENGINES["no memory to build in"])
    assert refusal.fix.startswith("close other programs")
    machine.library.script.builder_bytes = None
    assert attempt(words).code == 0


@pytest.mark.parametrize(
    ("case", "script"),
    [
        ("a graph that is not parsed", {"parser_errors": [ParserError(3, "", "GreedyMaxMin", "")]}),
        ("a graph that is not built", {"build": "none"}),
    ],
)
def test_a_plugin_that_is_not_taken_is_done_without(engine, run_words, monkeypatch, case, script):
    Machine(monkeypatch, fail_at="plugin.onnx", **script)
    refusal = attempt(build(engine))
    assert_gave(refusal, ENGINES[case])
    assert attempt(follow(build(engine), refusal)).code == 0
    assert attempt(run_words(engine)).code == 0


def unknown_operator(path: Path, copy: Path) -> None:
    content = (path / "vision/model.onnx").read_bytes().replace(b"Softmax", b"Hardmix")
    copy_engine(path, copy, files={"vision/model.onnx": content})


def other_input(path: Path, copy: Path) -> None:
    vision = read_manifest(path).graphs["vision"]
    pixels = replace(vision.inputs[0], name="pixels")
    graphs = read_manifest(path).graphs | {"vision": replace(vision, inputs=(pixels,))}
    copy_engine(path, copy, graphs=graphs)


def without_the_mark(path: Path, copy: Path) -> None:
    """As it was exported before TensorRT-RTX needed a mark for float32 attention."""
    graphs = dict(read_manifest(path).graphs)
    del graphs["llm_tensorrt"], graphs["selection"]
    copy_engine(path, copy, graphs=graphs)


REFUSED: dict[str, Callable[[Path, Path], None]] = {
    "a graph that is not parsed": unknown_operator,
    "a graph with another input": other_input,
    "a graph that is not built": without_the_mark,
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_export_that_is_made_again_is_built_by_the_real_library(
    target_dir, advised, tmp_path, case
):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    source = target_dir("tensorrt-rtx", "fp32")
    REFUSED[case](source, tmp_path / "engine")
    refusal = attempt(build(tmp_path / "engine", "--target-cc", "89"))
    assert_gave(refusal, ENGINES[case])
    command = refusal.fix if "divprune-export " in refusal.fix else export_command(
        read_manifest(source)
    )  # fmt: skip
    assert "divprune-export" in refusal.fix
    assert attempt(build(advised(command), "--target-cc", "89")).code == 0


def test_graphs_that_are_unknown_are_left_to_onnxruntime(
    machine, engine, run_words, advised, tmp_path
):
    graphs = dict(read_manifest(engine).graphs)
    graphs["audio"] = graphs["selection"]
    changed = copy_engine(engine, tmp_path / "copy", graphs=graphs, selector__name="of-ours")
    refusal = attempt(build(changed))
    assert_gave(refusal, ENGINES["graphs that nobody knows"])
    another = refusal.fix.replace("--selector of-ours", "--selector divprune")
    assert attempt(run_words(advised(another))).code == 0
    assert refusal.fix.startswith("export with another --selector")
    assert attempt(build(engine)).code == 0


def test_a_size_without_a_range_has_one_in_a_new_export(machine, engine, tmp_path):
    vision = read_manifest(engine).graphs["vision"]
    shape = ("crops", *vision.inputs[0].shape[1:])
    odd = replace(vision, inputs=(replace(vision.inputs[0], shape=shape),))
    graphs = read_manifest(engine).graphs | {"vision": odd}
    changed = copy_engine(engine, tmp_path / "copy", graphs=graphs)
    assert_gave(attempt(build(changed, "--no-plugin")), ENGINES["a size without a range"])
    assert attempt(build(engine, "--no-plugin")).code == 0


# The library


def test_the_export_for_tensorrt_is_built_and_this_one_runs(
    machine, engine_dir, run_words, advised
):
    refusal = attempt(build(engine_dir))
    assert_gave(refusal, ENGINES["a directory of another runtime"])
    assert attempt(build(advised(refusal.fix))).code == 0
    assert refusal.fix.endswith("divprune-run needs no build for this one")
    assert attempt(run_words(engine_dir)).code == 0


def test_the_packages_named_bring_the_libraries(machine, engine, target_dir, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    ahead = target_dir("tensorrt-rtx", "fp32")
    for path, module in ((engine, "tensorrt"), (ahead, "tensorrt_rtx")):
        words = build(path, "--dry-run", *(["--target-cc", "89"] if path is ahead else []))
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            refusal = attempt(words)
        assert_gave(refusal, ENGINES["no library"])
        *_, package = shlex.split(refusal.fix)
        assert package in brought_by(f"divprune-edge[{module.replace('_', '-')}]")
        assert attempt(words).code == 0
    assert package.replace("-", "_") in packages_distributions()["tensorrt_rtx"]


def test_a_dialect_of_another_runtime_is_exported_anew(machine, engine, advised, tmp_path):
    changed = copy_engine(engine, tmp_path / "copy", dialect="ort", requires={})
    refusal = attempt(build(changed))
    assert_gave(refusal, ENGINES["a dialect of another runtime"])
    assert attempt(build(advised(refusal.fix))).code == 0


def test_an_old_library_takes_the_target_named(engine, advised, monkeypatch):
    Machine(monkeypatch, version="10.3.0")
    refusal = attempt(build(engine))
    assert_gave(refusal, ENGINES["an old library"])
    assert attempt(build(advised(refusal.fix))).code == 0


@pytest.mark.parametrize(("target", "old"), [("tensorrt", "8.6.1"), ("jetpack6", "10.2.0")])
def test_a_library_that_no_target_is_for_is_updated(target_dir, tmp_path, monkeypatch, target, old):
    path = Path(shutil.copytree(target_dir(target, "fp32"), tmp_path / "engine"))
    Machine(monkeypatch, version=old)
    refusal = attempt(build(path))
    assert_gave(refusal, ENGINES["an old library"])
    words = shlex.split(refusal.fix)
    assert words[:3] == ["pip", "install", "--upgrade"]  # without it pip leaves what is there
    assert words[-1] in brought_by("divprune-edge[tensorrt]")
    Machine(monkeypatch)
    assert attempt(build(path)).code == 0


# The GPU


def test_the_device_builds_the_copy(machine, engine, tmp_path, monkeypatch):
    with monkeypatch.context() as workstation:
        workstation.setattr(build_plan, "find_cuda_device", lambda: None)
        refusal = attempt(build(engine))
    assert_gave(refusal, ENGINES["no GPU to build on"])
    copy = Path(shutil.copytree(engine, tmp_path / "on the device"))
    program, place = re.findall(r"run (\S+) (\w+)", refusal.fix)[0]
    assert place == "there"
    assert attempt([program, str(copy), "-q"]).code == 0


def test_every_gpu_that_is_named_can_be_built_for(target_dir, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.setattr(build_plan, "find_cuda_device", lambda: None)
    words = build(target_dir("tensorrt-rtx", "fp32"), "--dry-run")
    refusal = attempt(words)
    assert_gave(refusal, ENGINES["no GPU to build for"])
    named = re.findall(r"(\d+) \(\w", refusal.fix)
    assert len(named) == 3
    for each in named:
        assert attempt([*words, "--target-cc", each]).code == 0


def test_a_gpu_that_is_not_known_is_built_for_by_the_targets_named(
    target_dir, advised, monkeypatch
):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    path = target_dir("tensorrt-rtx", "fp32")
    refusal = attempt(build(path, "--target-cc", ORIN.compute_capability))
    assert_gave(refusal, ENGINES["a GPU that is not known"])
    targets = re.findall(r"--target (\S+)", refusal.fix)
    assert targets == ["tensorrt", "jetpack6"]
    for target, version in zip(targets, ("10.16.1", "10.3.0"), strict=True):
        Machine(monkeypatch, version=version)
        exported = advised(export_command(read_manifest(path), target=target))
        assert attempt(build(exported, "--target-cc", ORIN.compute_capability)).code == 0


def test_a_gpu_elsewhere_builds_itself_or_is_built_for_ahead_of_time(
    machine, engine, advised, monkeypatch
):
    refusal = attempt(build(engine, "--target-cc", "89"))
    assert_gave(refusal, ENGINES["a GPU elsewhere"])
    assert refusal.fix.startswith("build on the device itself")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (target,) = re.findall(r"--target (\S+)", refusal.fix)
    exported = advised(export_command(read_manifest(engine), target=target))
    assert attempt(build(exported, "--target-cc", "89")).code == 0
    there = replace(ORIN, name="NVIDIA L4", compute_capability="8.9", integrated=False)
    monkeypatch.setattr(build_plan, "find_cuda_device", lambda: there)
    assert attempt(build(engine, "--target-cc", "89")).code == 0


def test_every_case_is_followed_by_one_of_the_two_files():
    files = (Path(__file__), Path(__file__).with_name("test_engines.py"))
    text = "".join(file.read_text() for file in files)
    assert [name for name in ENGINES if f'"{name}"' not in text] == []
