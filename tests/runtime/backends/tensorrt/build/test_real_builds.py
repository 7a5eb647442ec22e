"""The real TensorRT-RTX builder and parser, on the CPU, through the command line."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from divprune.runtime.cli.build import main
from divprune.runtime.backends.cuda.cuda_device import find_cuda_device
from divprune.runtime.backends.tensorrt import engine_file
from divprune.runtime.backends.tensorrt.build import build_engine as build_engine_module
from divprune.runtime.backends.tensorrt.build.build_engines import build_engines
from divprune.runtime.backends.tensorrt.build.build_plan import BuildRequest, make_build_plan
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.file_hash import hash_file
from tests.runtime.backends.tensorrt.build.tiny_directory import LLM, write_directory, write_files
from tests.runtime.engine_copies import read_manifest

pytest.importorskip("onnx", reason="writes real graphs")
trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with engines for two compute capabilities; do not change it."""
    path = write_directory(tmp_path_factory.mktemp("rtx") / "tiny", real=True)
    assert main([str(path), "--target-cc", "89", "8.6", "-q"]) == 0
    return path


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "copy")


def states(path: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in (path / "engines").rglob("*")}


def test_engines_and_their_record_are_there(built):
    lane = built / "engines" / "tensorrt-rtx-sm89"
    assert sorted(path.name for path in lane.iterdir()) == [
        "llm.engine",
        "record.json",
        "selection.engine",
        "vision.engine",
    ]
    record = json.loads((lane / "record.json").read_text())
    assert record["surroundings"]["library_version"] == trt.__version__
    assert record["surroundings"]["compute_capability"] == "8.9"
    assert record["selection"] == "loop"
    assert record["engines"]["llm"]["profiles"] == ["decode", "pruned", "baseline"]
    for engine in record["engines"].values():
        assert engine["sha256"] == hash_file(lane / engine["path"])
    assert [p.name for p in (built / "engines").glob(".*")] == []


def test_engines_of_different_capabilities_differ(built):
    one, other = (built / f"engines/tensorrt-rtx-sm{cc}/llm.engine" for cc in (86, 89))
    assert one.read_bytes() != other.read_bytes()


def test_second_call_does_nothing(copy, capsys):
    before = states(copy)
    assert main([str(copy), "--target-cc", "89", "86"]) == 0
    assert capsys.readouterr().out == "the engines are valid: nothing to do\n"
    assert states(copy) == before


def test_force_builds_again(copy):
    before = states(copy)
    assert main([str(copy), "--target-cc", "89", "--force", "-q"]) == 0
    after = states(copy)
    changed = {path for path in before if before[path] != after[path]}
    assert any("sm89" in path for path in changed)
    assert not any("sm86/" in path for path in changed)


def test_graph_exported_anew_is_built_again(copy, tmp_path, capsys):
    other = write_directory(tmp_path / "other", real=True, max_prefill_len=20)
    shutil.move(copy / "engines", other / "engines")
    content = (other / LLM.path).read_bytes().replace(b"position_f", b"position_g")
    names = read_manifest(other).files
    files = {name: (other / name).read_bytes() for name in names} | {LLM.path: content}
    write_files(other, read_manifest(other), files)

    assert main([str(other), "--target-cc", "89", "--dry-run"]) == 0
    assert "was built from another llm/model.onnx: exported again since" in capsys.readouterr().out
    assert main([str(other), "--target-cc", "89", "-q"]) == 0
    assert main([str(other), "--target-cc", "89", "--dry-run"]) == 0
    assert "valid, nothing to do" in capsys.readouterr().out


def test_dry_run_builds_nothing(tmp_path, capsys):
    path = write_directory(tmp_path / "e", real=True)
    assert main([str(path), "--target-cc", "120", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (lane,) = plan["lanes"]
    assert lane["folder"] == "engines/tensorrt-rtx-sm120"
    assert lane["build"]
    assert lane["engines"]["llm"]["profiles"] == [
        "decode 1",
        "pruned 2-27 (best at 27)",
        "baseline 2-31 (best at 31)",
    ]
    assert not (path / "engines").exists()


def test_broken_graph_is_refused_with_the_node_and_leaves_nothing(tmp_path, capsys):
    path = write_directory(tmp_path / "e", real=True)
    content = (path / LLM.path).read_bytes().replace(b"TensorScatter", b"TensorScotter")
    manifest = read_manifest(path)
    files = {name: (path / name).read_bytes() for name in manifest.files} | {LLM.path: content}
    write_files(path, manifest, files)

    assert main([str(path), "--target-cc", "89", "-q"]) == 2
    error = capsys.readouterr().err
    assert f"TensorRT-RTX {trt.__version__} refuses llm/model.onnx" in error
    assert "(TensorScotter)" in error
    assert not (path / "engines").exists()


def test_interrupt_during_a_build_leaves_nothing(tmp_path):
    path = write_directory(tmp_path / "e", real=True)
    plan = make_build_plan(EngineDirectory.open(path), BuildRequest(target_cc=("89",)))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(plan, lambda _: contextlib.nullcontext(interrupt))
    assert not (path / "engines").exists()


def test_full_disk_leaves_nothing(tmp_path, monkeypatch, capsys):
    path = write_directory(tmp_path / "e", real=True)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_file.EngineFile, "write", full)
    assert main([str(path), "--target-cc", "89", "-q"]) == 2
    assert "no space left" in capsys.readouterr().err
    assert not (path / "engines").exists()


@pytest.mark.skipif(find_cuda_device() is not None, reason="this machine has a GPU")
def test_without_gpu_the_target_has_to_be_named(tmp_path, capsys):
    path = write_directory(tmp_path / "e")
    assert main([str(path)]) == 2
    assert "--target-cc 89" in capsys.readouterr().err


def test_capability_that_the_library_does_not_know_is_refused(tmp_path, capsys):
    path = write_directory(tmp_path / "e")
    assert main([str(path), "--target-cc", "87"]) == 2
    assert "cannot build for compute capability 8.7" in capsys.readouterr().err


@pytest.mark.parametrize("options, taken", [([], True), (["--weight-streaming"], False)])
def test_only_a_decoder_that_is_recorded_takes_all_its_memory_from_the_user(
    tmp_path, monkeypatch, options, taken
):
    """What may allocate while it runs cannot be a CUDA graph; streamed weights are allocated."""
    flags = {}
    real = build_engine_module._configure

    def configure(library, builder, task):
        config = real(library, builder, task)
        flags[task.name] = config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        return config

    monkeypatch.setattr(build_engine_module, "_configure", configure)
    path = write_directory(tmp_path / "tiny", real=True)
    assert main([str(path), "--target-cc", "120", "-q", *options]) == 0
    assert flags == {"vision": False, "selection": False, "llm": taken}
