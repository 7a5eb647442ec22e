"""What a TensorRT on a GPU would do to a build, played by a scripted one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from divprune.runtime.cli.build import main
from divprune.runtime.backends.tensorrt.build import build_engines
from divprune.runtime.backends.tensorrt.library import TensorRT
from divprune.runtime.backends.tensorrt.logger_bridge import make_logger
from divprune.runtime.backends.tensorrt.build.selection_choice import choose_selection
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import SelectorInfo
from tests.runtime.backends.tensorrt.conftest import ORIN
from tests.runtime.backends.tensorrt.build.tiny_directory import (
    LLM,
    SELECTION,
    VISION,
    write_directory,
    write_files,
)
from tests.runtime.engine_copies import read_manifest
from tests.runtime.example_manifest import with_changes
from tests.runtime.fake_tensorrt import ParserError, Severity

KILLED_BUILD = """
import sys
from divprune.runtime.backends.tensorrt.build import build_plan
from divprune.runtime.backends.tensorrt.library import TensorRT
from divprune.runtime.backends.tensorrt.logger_bridge import make_logger
from divprune.runtime.cli.build import main
from tests.runtime.backends.tensorrt.conftest import ORIN
from tests.runtime.fake_tensorrt import FakeTensorRT, Script

sys.modules["tensorrt"] = FakeTensorRT(Script(build="kill", fail_at="llm/model.onnx"))
build_plan.find_cuda_device = lambda: ORIN
main(sys.argv[1:])
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_directory(tmp_path / "e", target="tensorrt")


@pytest.fixture
def lane(directory: Path) -> Path:
    return directory / "engines" / "tensorrt-sm87"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_engines_record_and_timing_cache_are_written(on_orin, directory, lane):
    library = on_orin()
    assert main([str(directory), "-q"]) == 0
    assert names(lane) == [
        "llm.engine",
        "record.json",
        "selection.engine",
        "timing.cache",
        "vision.engine",
    ]
    record = json.loads((lane / "record.json").read_text())
    assert record["surroundings"] | {"driver": None} == {
        "library": "tensorrt",
        "library_version": "10.16.1.11",
        "compute_capability": "8.7",
        "device_name": "Orin",
        "cuda": "12.6",
        "driver": None,
        "os": record["surroundings"]["os"],
        "architecture": record["surroundings"]["architecture"],
    }
    assert (lane / "timing.cache").read_bytes() == b"timed;" * 3
    llm = json.loads((lane / "llm.engine").read_text())
    assert [profile["inputs_embeds"] for profile in llm["profiles"]] == [
        [[1, 1, 8], [1, 1, 8], [1, 1, 8]],
        [[1, 2, 8], [1, 27, 8], [1, 27, 8]],
        [[1, 2, 8], [1, 31, 8], [1, 31, 8]],
    ]
    assert ("limit", "WORKSPACE", (8 << 30) // 4 >> 20 << 20) not in library.script.calls
    limits = {call[2] for call in library.script.calls if call[0] == "limit"}
    # On an Orin the builder and its copies of the weights are in the same memory.
    assert limits == {((8 << 30) - (450 << 20) - 3 * len(b"its weights")) // 4 >> 20 << 20}


def test_a_builder_that_cannot_stream_gives_the_same_engine(on_orin, directory, lane):
    on_orin(streams=False)
    assert main([str(directory), "-q"]) == 0
    whole = (lane / "llm.engine").read_bytes()
    on_orin()
    assert main([str(directory), "-q", "--force"]) == 0
    assert (lane / "llm.engine").read_bytes() == whole


def test_timing_cache_of_the_last_build_is_used_and_a_foreign_one_is_not(on_orin, directory, lane):
    on_orin()
    main([str(directory), "-q"])
    library = on_orin()
    main([str(directory), "-q", "--force"])
    assert library.script.calls.count(("timing cache", b"timed;" * 3)) == 1

    (lane / "timing.cache").write_bytes(b"foreign")
    library = on_orin()
    main([str(directory), "-q", "--force"])
    first = [call for call in library.script.calls if call[0] == "timing cache"][:2]
    assert first == [("timing cache", b"foreign"), ("timing cache", b"")]


def test_second_call_builds_nothing(on_orin, directory, capsys):
    on_orin()
    main([str(directory), "-q"])
    library = on_orin()
    assert main([str(directory)]) == 0
    assert library.script.calls == []
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "device, script, reason",
    [
        (ORIN, {"version": "10.17.0"}, "another library version"),
        (replace(ORIN, name="Orin NX"), {}, "another device name"),
        (replace(ORIN, cuda="12.2"), {}, "another CUDA version of the driver"),
    ],
)
def test_engines_for_something_else_are_built_again(
    on_orin, directory, capsys, device, script, reason
):
    on_orin()
    main([str(directory), "-q"])
    library = on_orin(device, **script)
    assert main([str(directory)]) == 0
    assert reason in capsys.readouterr().err
    assert ("build", "model.onnx") in library.script.calls
    assert main([str(directory)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_newer_driver_needs_no_build(on_orin, directory, capsys):
    on_orin()
    main([str(directory), "-q"])
    on_orin(replace(ORIN, cuda="13.0"))
    assert main([str(directory)]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_another_gpu_gets_a_lane_of_its_own(on_orin, directory):
    on_orin()
    main([str(directory), "-q"])
    on_orin(replace(ORIN, compute_capability="11.0", name="Thor"))
    main([str(directory), "-q"])
    assert names(directory / "engines") == ["tensorrt-sm110", "tensorrt-sm87"]


@pytest.mark.parametrize("file", ["llm.engine", "vision.engine", "selection.engine"])
def test_a_truncated_engine_is_built_again(on_orin, directory, lane, capsys, file):
    on_orin()
    main([str(directory), "-q"])
    whole = (lane / file).read_bytes()
    (lane / file).write_bytes(whole[:-1])
    on_orin()
    assert main([str(directory)]) == 0
    assert f"{file} is not the engine that was built" in capsys.readouterr().err
    assert (lane / file).read_bytes() == whole


@pytest.mark.parametrize("option", [["--workspace", "64"], ["--weight-streaming"]])
def test_other_options_build_again(on_orin, directory, option):
    on_orin()
    main([str(directory), "-q"])
    library = on_orin()
    assert main([str(directory), "-q", *option]) == 0
    assert ("build", "model.onnx") in library.script.calls
    library.script.calls.clear()
    assert main([str(directory), "-q", *option]) == 0
    assert library.script.calls == []


def test_a_builder_that_returns_none_leaves_nothing_and_says_why(on_orin, directory, capsys):
    on_orin(build="none", messages=[("ERROR", "no implementation for node Foo")])
    assert main([str(directory), "-q"]) == 2
    error = capsys.readouterr().err
    assert "cannot build vision/model.onnx for compute capability 8.7" in error
    assert "no implementation for node Foo" in error
    assert not (directory / "engines").exists()


def test_engines_that_were_there_survive_a_failing_build(on_orin, directory, lane):
    on_orin()
    main([str(directory), "-q"])
    before = {path.name: path.read_bytes() for path in lane.iterdir()}
    on_orin(build="none", fail_at="llm/model.onnx")
    assert main([str(directory), "-q", "--force"]) == 2
    assert {path.name: path.read_bytes() for path in lane.iterdir()} == before
    assert names(directory / "engines") == ["tensorrt-sm87"]


def test_out_of_memory_suggests_a_smaller_workspace(on_orin, directory, capsys):
    text = "Requested amount of GPU memory (1 bytes) could not be allocated: OutOfMemory"
    on_orin(build="none", messages=[("ERROR", text)])
    assert main([str(directory), "-q", "--workspace", "512"]) == 2
    error = capsys.readouterr().err
    assert "ran out of memory while it built vision/model.onnx" in error
    assert "512 MiB of workspace" in error
    assert "--workspace 256" in error


def test_every_parser_error_is_listed_with_its_node(on_orin, directory, capsys):
    on_orin(
        parser_errors=[
            ParserError(3, "/layers.0/Attention", "Attention", "one output\nonly"),
            ParserError(9, "", "", "no idea"),
        ]
    )
    assert main([str(directory), "-q"]) == 2
    error = capsys.readouterr().err
    assert "node 3 /layers.0/Attention (Attention): one output only" in error
    assert "node 9 (graph): no idea" in error
    assert not (directory / "engines").exists()


def test_an_input_that_the_parser_dropped_is_noticed(on_orin, directory, capsys):
    on_orin(inputs=["pixels"])
    assert main([str(directory), "-q"]) == 2
    assert "vision/model.onnx is not the graph" in capsys.readouterr().err


def test_a_killed_build_leaves_nothing_that_looks_built(on_orin, directory, root):
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, str(directory), "-q"], cwd=root, check=False
    )
    assert done.returncode == -9
    (partial,) = (directory / "engines").iterdir()
    assert partial.name.startswith(".tensorrt-sm87.partial-")
    assert (partial / "vision.engine").exists()

    on_orin()
    assert main([str(directory), "-q"]) == 0
    assert names(directory / "engines") == ["tensorrt-sm87"]


def test_tensorrt_that_is_too_old_names_the_target_it_takes(on_orin, directory, capsys):
    on_orin(version="10.3.0")
    assert main([str(directory)]) == 2
    error = capsys.readouterr().err
    assert "TensorRT 10.15 or newer" in error
    assert "--target jetpack6" in error


def test_jetpack6_graphs_are_taken_by_tensorrt_10_3(on_orin, tmp_path):
    on_orin(version="10.3.0")
    path = write_directory(tmp_path / "j", target="jetpack6", dialect="delta")
    assert main([str(path), "-q"]) == 0


def test_another_capability_than_the_gpus_is_refused(on_orin, directory, capsys):
    on_orin()
    assert main([str(directory), "--target-cc", "89"]) == 2
    assert "TensorRT builds for the GPU that it runs on" in capsys.readouterr().err
    assert main([str(directory), "--target-cc", "8.7", "-q"]) == 0


def test_without_gpu_the_device_is_where_to_build(on_orin, directory, capsys):
    on_orin(None)
    assert main([str(directory)]) == 2
    assert "run divprune-build there" in capsys.readouterr().err


@pytest.mark.parametrize("capability", ["abc", "8", "", "1234"])
def test_what_is_no_capability_is_refused(on_orin, directory, capsys, capability):
    on_orin()
    assert main([str(directory), "--target-cc", capability]) == 2
    assert "no compute capability" in capsys.readouterr().err


def test_a_target_of_another_runtime_is_refused(on_orin, tmp_path, capsys):
    on_orin()
    path = write_directory(tmp_path / "o", target="onnxruntime", dialect="ort")
    assert main([str(path)]) == 2
    assert "has nothing to do with TensorRT" in capsys.readouterr().err


def test_graphs_that_the_backend_does_not_know_are_refused_by_name(on_orin, tmp_path, capsys):
    on_orin()
    graphs = {"vision": VISION, "llm": LLM, "audio": replace(VISION, path="audio/model.onnx")}
    path = write_directory(tmp_path / "f", target="tensorrt", graphs=graphs)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert "selector divprune cannot be built" in error
    assert "found:    audio" in error


@pytest.mark.parametrize("selection", [True, False])
def test_the_halves_of_a_decoder_get_engines_of_their_own(on_orin, tmp_path, capsys, selection):
    library = on_orin()
    front = replace(LLM, path="llm/front/model.onnx")
    back = replace(LLM, path="llm/back/model.onnx")
    graphs = {
        "vision": VISION,
        "llm_front": front,
        "llm_front_tensorrt": replace(front, path="llm/front/model.tensorrt.onnx"),
        "llm_back": back,
        "llm_back_tensorrt": replace(back, path="llm/back/model.tensorrt.onnx"),
    }
    if selection:
        graphs["llm_selection"] = replace(SELECTION, path="llm/selection.onnx")
    kept = 2 if selection else 0
    path = write_directory(
        tmp_path / "f",
        target="tensorrt",
        graphs=graphs,
        kv_cache__num_layers=2,
        selector=SelectorInfo(
            "fastv", 1, kept / 6, 6, kept, "original", True, False, True, {"layer": 1}
        ),
    )
    (path / "llm/front/model.onnx.data").write_bytes(b"weights of the front")
    files = {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    write_files(path, read_manifest(path), files)
    assert main([str(path), "--weight-streaming"]) == 0
    assert "between the halves of the language model" in capsys.readouterr().err

    built = [call[1] for call in library.script.calls if call[0] == "build"]
    assert built == ["model.onnx", *["model.tensorrt.onnx"] * 2, *["selection.onnx"] * selection]
    record = json.loads((path / "engines/tensorrt-sm87/record.json").read_text())
    engines = {name: engine["profiles"] for name, engine in record["engines"].items()}
    assert engines == {
        "vision": [],
        "llm_front": ["decode", "prompt"],
        "llm_back": ["decode", "pruned", "baseline"],
    } | ({"llm_selection": []} if selection else {})
    hashed = {name: set(engine["graph_files"]) for name, engine in record["engines"].items()}
    assert hashed["llm_front"] == {"llm/front/model.tensorrt.onnx", "llm/front/model.onnx.data"}
    assert hashed["llm_back"] == {"llm/back/model.tensorrt.onnx"}
    if selection:
        assert hashed["llm_selection"] == {"llm/selection.onnx"}

    library.script.calls.clear()
    assert main([str(path), "--weight-streaming"]) == 0
    assert library.script.calls == []


def test_without_baseline_there_is_one_prefill_profile(on_orin, tmp_path, capsys):
    on_orin()
    path = write_directory(tmp_path / "b", target="tensorrt", baseline=False)
    assert main([str(path), "--dry-run"]) == 0
    assert "decode 1, pruned 2-31 (best at 31)" in capsys.readouterr().out


def test_a_dimension_that_no_profile_describes_is_refused(on_orin, tmp_path, capsys):
    on_orin()
    odd = replace(LLM.inputs[0], shape=(1, "length", 8))
    graphs = {"vision": LLM, "llm": replace(LLM, inputs=(odd, *LLM.inputs[1:]))}
    path = write_directory(tmp_path / "d", target="tensorrt", graphs=graphs)
    assert main([str(path)]) == 2
    assert "varies in a way no profile describes" in capsys.readouterr().err


def test_warnings_are_logged_once_and_expected_ones_not_at_all(on_orin, directory, capsys):
    on_orin(
        messages=[
            ("WARNING", "weights are denormal"),
            ("WARNING", "Make sure output selection_order has Int64 binding."),
            ("INFO", "loaded"),
            ("VERBOSE", "tactic 7"),
        ]
    )
    assert main([str(directory), "-v"]) == 0
    said = capsys.readouterr().err
    assert said.count("WARNING: TensorRT 10.16.1.11: weights are denormal") == 1
    assert "DEBUG: TensorRT 10.16.1.11: Make sure output" in said
    assert "DEBUG: TensorRT 10.16.1.11: loaded" in said
    assert "tactic 7" not in said


def test_a_logger_that_is_given_nonsense_raises_nothing(on_orin):
    library = TensorRT("tensorrt", "10.16", on_orin())
    logger = make_logger(library)
    logger.log(None, "no severity")
    logger.log(Severity.ERROR, "%s %d no arguments")
    assert logger.errors() == ["%s %d no arguments"]


@pytest.mark.parametrize(
    "name, target, command",
    [
        ("tensorrt", "tensorrt", "pip install --upgrade --extra-index-url https://pypi.nvidia.com tensorrt"),
        ("tensorrt_rtx", "tensorrt-rtx", "pip install --upgrade tensorrt-rtx-cu13"),
    ],
)
def test_a_missing_library_gives_the_command_that_installs_it(
    tmp_path, monkeypatch, capsys, name, target, command
):
    monkeypatch.setitem(sys.modules, name, None)
    path = write_directory(tmp_path / "m", target=target)
    assert main([str(path), "--dry-run"]) == 2
    assert f"fix:      {command}" in capsys.readouterr().err


@pytest.fixture
def with_plugin_graph(tmp_path: Path) -> Path:
    graphs = {
        "vision": VISION,
        "vision_plugin": replace(VISION, path="vision/model.plugin.onnx"),
        "selection": SELECTION,
        "selection_plugin": replace(SELECTION, path="vision/selection.plugin.onnx"),
        "llm": LLM,
        "llm_tensorrt": replace(LLM, path="llm/model.tensorrt.onnx"),
    }
    return write_directory(tmp_path / "p", target="jetpack6", dialect="delta", graphs=graphs)


@pytest.mark.parametrize(
    "version, options, selection, vision",
    [
        ("10.16.1", [], "aot", "model.plugin.onnx"),
        ("10.3.0", [], "ipluginv3", "model.plugin.onnx"),
        ("10.16.1", ["--no-plugin"], "loop", "model.onnx"),
    ],
)
def test_the_plugin_is_taken_where_this_tensorrt_can_host_it(
    on_orin, with_plugin_graph, monkeypatch, capsys, version, options, selection, vision
):
    library, registered = on_orin(version=version), []
    monkeypatch.setattr(build_engines, "register_plugin", registered.append)
    assert main([str(with_plugin_graph), *options]) == 0

    built = [call[1] for call in library.script.calls if call[0] == "build"]
    # The selection alone is there to be timed: it does what the vision engine does.
    assert built == [vision, "model.tensorrt.onnx", vision.replace("model", "selection")]
    assert registered == ([] if selection == "loop" else [library])
    assert f"selection         {selection} (" in capsys.readouterr().err
    record = with_plugin_graph / "engines/tensorrt-sm87/record.json"
    assert json.loads(record.read_text())["selection"] == selection


def test_asking_for_another_realisation_builds_again(on_orin, with_plugin_graph, monkeypatch):
    library = on_orin()
    monkeypatch.setattr(build_engines, "register_plugin", lambda _: None)
    main([str(with_plugin_graph), "-q"])
    library.script.calls.clear()
    main([str(with_plugin_graph), "-q"])
    assert library.script.calls == []
    main([str(with_plugin_graph), "-q", "--no-plugin"])
    assert ("build", "selection.onnx") in library.script.calls


def test_more_tokens_than_the_plugin_holds_take_the_loop(on_orin, with_plugin_graph):
    manifest = EngineDirectory.open(with_plugin_graph).manifest
    library = TensorRT("tensorrt", "10.16", on_orin())
    many = with_changes(manifest, selector__num_image_tokens=20_000)
    choice = choose_selection(library, many, plugin=True)
    assert (choice.realisation, choice.graph) == ("loop", "vision")
    assert "20000 visual tokens" in choice.reason
