"""Advice from inside an export, and about the place that it writes to."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from divprune.export import export_model
from divprune.export.checkpoint.source import resolve_model
from divprune.export.checkpoint.tensor_file import read_tensor, stored_tensors
from divprune.export.graphs.lanes import LANES, check_graph
from divprune.export.planning.make_plan import make_plan
from divprune.export.planning.options import ExportOptions
from divprune.export.selection import Setting, get_selector
from divprune.export.selection.checks import check_finite
from divprune.export.selection.selection_graph import write_selection
from divprune.runtime.backends import load_backend
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.limits import shorten_cache
from divprune.runtime.errors import DivPruneError
from tests.advice.covered import EXPORTS
from tests.advice.tools import assert_gave, attempt, refused
from tests.export.graphs.test_lanes import graph_of


@pytest.fixture
def words(checkpoint: Callable[[str], Path], tmp_path: Path) -> list[str]:
    source = checkpoint("clip-llama-hub")
    return f"divprune-export --model {source} --keep 0.1 --output {tmp_path / 'new'}".split()


def test_an_export_goes_on_once_there_is_space(words, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        refusal = attempt(words, whole=False)
    assert_gave(refusal, EXPORTS["a disk that is full"])
    assert attempt(words, whole=False).code == 0


def test_an_export_that_filled_the_disk_is_made_on_another(words, tmp_path, monkeypatch):
    original = export_model.write_host_files

    def write(checkpoint: Path, directory: Path, *rest: object) -> None:
        if directory.parent.name != "other":
            raise OSError(errno.ENOSPC, "No space left on device")
        original(checkpoint, directory, *rest)

    monkeypatch.setattr(export_model, "write_host_files", write)
    assert_gave(attempt(words, whole=False), EXPORTS["a disk that fills up"])
    (tmp_path / "other").mkdir()
    assert attempt([*words[:-1], str(tmp_path / "other" / "new")], whole=False).code == 0


def test_the_selector_named_has_no_need_of_one_size():
    def write(name: str) -> ir.Model:
        return write_selection(get_selector(name, SETTING), None, None, 12, ir.DataType.FLOAT)

    refusal = refused(lambda: write("downsample"))
    assert_gave(refusal, EXPORTS["a selector for one size"])
    assert refusal.fix == "--selector divprune"
    write("divprune")


SETTING = Setting(max_tokens=64)


def test_another_target_takes_the_graph():
    graph = graph_of("Swish", (2, 3), opset=24)
    refusals, taken = [], []
    for target, lane in LANES.items():
        if lane.limits is None:  # ONNX Runtime runs whatever is written for it
            taken.append(target)
            continue
        try:
            check_graph(graph, lane.limits)
            taken.append(target)
        except DivPruneError:
            refusals.append(refused(lambda lane=lane: check_graph(graph, lane.limits)))
    assert taken
    assert_gave(refusals[0], EXPORTS["a graph beyond a target"])


def test_numbers_that_fp16_cannot_hold_are_compared_in_fp32():
    large = np.array([[7e4, 1.0], [1.0, 2.0]])
    with np.errstate(over="ignore"):
        refusal = refused(lambda: check_finite("features", large.astype(np.float16)))
    assert_gave(refusal, EXPORTS["features beyond fp16"])
    check_finite("features", large.astype(np.float32))


def test_a_file_cut_off_while_it_is_read_is_downloaded_again(
    checkpoint: Callable[[str], Path], tmp_path
):
    source = checkpoint("clip-llama-v4-gqa2-full") / "model.safetensors"
    file = Path(shutil.copy(source, tmp_path))
    tensor = max(stored_tensors(file), key=lambda each: each.offset)
    file.write_bytes(source.read_bytes()[:-4])
    assert_gave(refused(lambda: read_tensor(tensor)), EXPORTS["a file cut off meanwhile"])
    shutil.copy(source, file)
    assert read_tensor(tensor).numel()


def test_a_selector_is_called_by_one_of_the_names():
    assert_gave(refused(lambda: get_selector("divprun")), EXPORTS["a selector of no name"])
    assert get_selector("divprune").name == "divprune"


def test_fewer_tokens_and_a_longer_cache_have_room(engine_dir):
    directory = EngineDirectory.open(engine_dir)
    rows = np.zeros((1, 30, directory.manifest.model.hidden_size), np.float32)

    def ask(length: int, count: int) -> object:
        backend = load_backend("onnxruntime", shorten(directory, length), device="cpu", threads=1)
        backend.reset()
        return backend.forward(rows[:, :count], np.arange(count)[None])

    assert_gave(refused(lambda: ask(20, 30)), EXPORTS["a cache that is full"])
    ask(20, 10)
    ask(40, 30)


def shorten(directory: EngineDirectory, length: int) -> EngineDirectory:
    return replace(directory, manifest=shorten_cache(directory.manifest, length))


def test_the_size_of_pictures_is_bounded_where_none_can_be_scaled(any_checkpoint, tmp_path):
    family = make_plan(
        ExportOptions(model=str(any_checkpoint("next-llama-hub")), keep=0.1),
        resolve_model(str(any_checkpoint("next-llama-hub"))),
    ).family
    refusal = refused(lambda: family.resized_vision_module((16, 16)))
    assert_gave(refusal, EXPORTS["one size for any picture"])
    words = f"divprune-export --model {any_checkpoint('next-llama-hub')} --keep 0.1"
    words += f" --output {tmp_path / 'new'} --max-image-tokens 60"
    assert attempt(words.split(), whole=False).code == 0
