"""Advice about TensorRT engines that run: it is done, and they run, on stand-ins for a device."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune.runtime.backends import load_backend
from divprune.runtime.backends.tensorrt import backend as tensorrt
from divprune.runtime.directory.engine_directory import EngineDirectory
from tests.advice.covered import ENGINES
from tests.advice.tools import assert_gave, attempt, build, follow, refused
from tests.runtime.engine_copies import read_manifest
from tests.runtime.fake_machine import Machine, picture

pytest.importorskip("onnxruntime")

LANE = "engines/tensorrt-sm87"


def test_threads_are_left_out(built, run_words):
    words = run_words(built, "--threads", "1")
    refusal = attempt(words)
    assert_gave(refusal, ENGINES["threads"])
    assert attempt(follow(words, refusal)).code == 0


def test_the_device_runs_the_engines_and_the_cpu_another_export(
    built, run_words, advised, monkeypatch
):
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(tensorrt, "find_cuda_device", lambda: None)
        refusal = attempt(run_words(built))
        assert_gave(refusal, ENGINES["no GPU to run on"])
        assert attempt(run_words(advised(refusal.fix))).code == 0
    assert attempt(run_words(built)).code == 0


WAYS = {
    # What the advice names: the options of the export, and of the build.
    "--max-seq-len": ({"max_seq_len": 256}, ()),
    "--quant int4": ({"quant": "int4"}, ()),
    "--weight-streaming": ({}, ("--weight-streaming",)),
}


@pytest.fixture(scope="module")
def least_memory(_engines: Path, tmp_path_factory: Any) -> tuple[int, int]:
    """Bytes of the device that a run takes, and those that it has taken before the first engine."""
    file = tmp_path_factory.mktemp("memory") / "picture.png"
    picture(0).save(file)
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine, before = Machine(monkeypatch, takes_memory=True), list[int]()
        load = machine.library.Runtime

        def note(logger: Any) -> Any:
            before.append(machine.cuda.allocated)
            return load(logger)

        monkeypatch.setattr(machine.library, "Runtime", note)
        words = ["divprune-run", str(_engines), str(file), "-q"]
        assert attempt([*words, "--residency", "sequential", "--max-new-tokens", "2"]).code == 0
        return machine.cuda.peak, before[0]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_less_memory_leads_there(
    built, run_words, least_memory, target_dir, tmp_path, monkeypatch, way
):
    machine = Machine(monkeypatch, takes_memory=True)
    machine.cuda.memory_bytes = least_memory[0] - 1
    refusal = attempt(run_words(built))
    assert_gave(refusal, ENGINES["no memory left"])
    assert way in refusal.fix
    exporting, building = WAYS[way]
    smaller = Path(shutil.copytree(target_dir("tensorrt", "fp32", **exporting), tmp_path / "less"))
    assert attempt(build(smaller, *building)).code == 0
    assert attempt(run_words(smaller)).code == 0


def test_an_engine_without_memory_is_not_built_again_but_given_some(
    built, run_words, least_memory, monkeypatch
):
    machine = Machine(monkeypatch, takes_memory=True)
    machine.cuda.memory_bytes = least_memory[1] + 1
    refusal = attempt(run_words(built))
    assert_gave(refusal, ENGINES["no memory left"])
    assert "Cuda Runtime (out of memory)" in refusal.message
    assert refusal.fix.startswith("close other programs")
    machine.cuda.memory_bytes = least_memory[0]
    assert attempt(run_words(built)).code == 0


def test_fewer_tokens_and_a_longer_cache_have_room(machine, built, target_dir, tmp_path):
    short = Path(
        shutil.copytree(target_dir("tensorrt", "fp32", max_seq_len=256), tmp_path / "short")
    )
    assert attempt(build(short)).code == 0

    def ask(path: Path, rows: int) -> object:
        backend = load_backend(None, EngineDirectory.open(path), device=None, threads=None)
        hidden = read_manifest(path).model.hidden_size
        for count in (250, rows):
            embeds = np.zeros((1, count, hidden), np.float32)
            given = backend.forward(embeds, np.zeros((1, count), np.int64))
        return given

    assert_gave(refused(lambda: ask(short, 10)), ENGINES["a cache that is full"])
    ask(short, 6)
    ask(built, 10)


def change_engine(lane: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change an engine and its record: what TensorRT itself has to find out."""
    content = json.loads((lane / f"{name}.engine").read_text())
    result = change(content)
    changed = result if isinstance(result, bytes) else json.dumps(content).encode()
    (lane / f"{name}.engine").write_bytes(changed)
    digest = hashlib.sha256(changed).hexdigest()
    change_record(
        lane, lambda record: record["engines"][name].update(sha256=digest, size=len(changed))
    )


def change_record(lane: Path, change: Callable[[Any], object]) -> None:
    record = json.loads((lane / "record.json").read_text())
    change(record)
    (lane / "record.json").write_text(json.dumps(record))


def other_output(content: dict[str, Any]) -> None:
    content["names"]["outputs"][0] = "scores"


def narrower(content: dict[str, Any]) -> None:
    for profile in content["profiles"][1:]:
        profile["inputs_embeds"][2][1] = 3


FOREIGN: dict[str, tuple[str, str, Callable[[Any], object]]] = {
    "cannot load": ("an engine that is not taken", "vision", lambda _: b"no plan"),
    "cannot prepare": ("an engine that is not taken", "llm", lambda c: c["profiles"].clear()),
    "cannot run": ("an engine that is not taken", "llm", narrower),
    "other inputs and outputs": ("an engine of another graph", "llm", other_output),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_an_engine_that_tensorrt_refuses_is_built_again_as_it_was(machine, engine, run_words, what):
    key, name, change = FOREIGN[what]
    assert attempt(build(engine, "--weight-streaming", "--no-plugin")).code == 0
    change_engine(engine / LANE, name, change)
    refusal = attempt(run_words(engine))
    assert_gave(refusal, ENGINES[key])
    assert what in refusal.message
    assert attempt(shlex.split(refusal.fix)).code == 0
    assert attempt(run_words(engine)).code == 0
    record = json.loads((engine / LANE / "record.json").read_text())
    assert record["options"]["weight_streaming"]
    assert not record["options"]["plugin"]


def exported_again(machine: Machine, path: Path) -> None:
    change_record(
        path / LANE, lambda record: record["engines"]["llm"]["graph_files"].update(other="0")
    )


PROBLEMS: dict[str, Callable[[Machine, Path], object]] = {
    "has not been built yet": lambda _, path: shutil.rmtree(path / "engines"),
    "has no engines for this machine": lambda _, path: (path / LANE).rename(
        path / "engines/tensorrt-sm86"
    ),
    "cannot be read": lambda _, path: (path / LANE / "record.json").write_text("{"),
    "of another version of divprune-edge": lambda _, path: change_record(
        path / LANE, lambda record: record.update(record_version=1)
    ),
    "another library version": lambda machine, _: setattr(
        machine.library, "__version__", "10.17.0"
    ),
    "exported again since": exported_again,
    "is not the engine that was built": lambda _, path: (path / LANE / "llm.engine").write_text(""),
}


@pytest.mark.parametrize("what", PROBLEMS)
def test_engines_that_do_not_fit_are_built(machine, built, run_words, what):
    PROBLEMS[what](machine, built)
    refusal = attempt(run_words(built))
    assert_gave(refusal, ENGINES["engines that do not fit"])
    assert what in refusal.message
    assert attempt(shlex.split(refusal.fix)).code == 0
    assert attempt(run_words(built)).code == 0
