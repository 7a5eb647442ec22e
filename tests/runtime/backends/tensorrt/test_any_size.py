"""Pictures of any size through the backend on stand-ins: answers are those of ONNX Runtime.

One export a family, each with what the others lack: rows that are gathered (LLaVA-1.6), several
spans a picture and new cache rows as outputs (SmolVLM), a number of tokens that only the crops
tell (InternVL).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divprune.runtime import Pipeline
from divprune.runtime.backends import load_selection
from divprune.runtime.cli.build import main as build
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import DimRange
from tests.runtime.backends.tensorrt.any_size_exports import EXPORTS, write_export
from tests.runtime.engine_copies import copy_engine, read_manifest
from tests.runtime.fake_machine import QUESTION, Machine, answer
from tests.runtime.families.anyres_cases import noise

pytest.importorskip("onnxruntime")

ORIN_LIBRARY = {"tensorrt": "10.16.1.11", "jetpack6": "10.3.0"}
WIDE, TALL, SQUARE, TINY = (90, 30), (35, 80), (64, 64), (7, 9)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a key of ``EXPORTS`` to its directory: copy it before changing anything."""
    folder = tmp_path_factory.mktemp("any-size")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else write_export(path, name)

    return get


@pytest.fixture
def built(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[Machine, Path]]:
    """A function from a key of ``EXPORTS`` to a machine and a directory with engines for it."""

    def get(name: str) -> tuple[Machine, Path]:
        path = tmp_path / name
        shutil.copytree(exported(name), path)
        machine = Machine(monkeypatch, version=ORIN_LIBRARY[EXPORTS[name].target])
        assert build([str(path), "-q"]) == 0
        return machine, path

    return get


@pytest.mark.parametrize("name", EXPORTS)
def test_answers_are_those_of_onnxruntime(built: Any, name: str) -> None:
    machine, path = built(name)
    host = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    device = Pipeline.from_dir(path)
    sizes = set()
    for options in questions():
        expected, found = answer(host, **options), answer(device, **options)
        assert found.token_ids == expected.token_ids
        assert found.images == expected.images
        assert found.prompt_tokens == expected.prompt_tokens
        sizes |= {image.num_image_tokens for image in found.images}
    assert len(sizes) > 1
    assert machine.cuda.calls.count("launch graph")


def questions() -> list[Mapping[str, Any]]:
    """Of all shapes, with all, some and few tokens kept, two pictures with text between them."""
    return [
        {"images": noise(WIDE, 1)},
        {"images": noise(TALL, 2), "keep": 1.0},
        {"images": noise(SQUARE, 3), "keep": 0.1},
        {"images": [noise(TINY, 4), noise(WIDE, 5)]},
        {"images": noise(SQUARE, 6), "keep": "auto:0.5"},
    ]


@pytest.mark.parametrize("name", EXPORTS)
def test_a_conversation_goes_on_behind_the_rows_that_are_there(built: Any, name: str) -> None:
    machine, path = built(name)
    device = Pipeline.from_dir(path)
    host = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    messages: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": noise(WIDE, 7)},
                {"type": "text", "text": QUESTION},
            ],
        }
    ]
    first = device.chat(messages, max_new_tokens=6, ignore_eos=True).result
    messages.append({"role": "assistant", "content": first.text})
    messages.append({"role": "user", "content": "And what else is there?"})
    machine.library.script.calls.clear()
    found = device.chat(messages, max_new_tokens=6, ignore_eos=True).result
    fresh = host.chat(messages, max_new_tokens=6, ignore_eos=True, reuse=False).result
    assert found.token_ids == fresh.token_ids
    assert ("vision", 0) not in machine.executed()
    assert found.cached_tokens > 0


def test_the_cover_comes_with_the_order(built: Any) -> None:
    _, path = built("llava_next")
    device = Pipeline.from_dir(path)
    host = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    for size in (WIDE, SQUARE):
        found = device.encode_image(noise(size)).features
        expected = host.encode_image(noise(size)).features
        np.testing.assert_array_equal(found.cover, expected.cover)
        np.testing.assert_array_equal(found.selection_order, expected.selection_order)


def test_pictures_take_the_memory_that_they_need(built: Any) -> None:
    machine, path = built("llava_next")
    device = Pipeline.from_dir(path)
    device.encode_image(noise(WIDE, 1))  # the engine allocates its scratch
    for size in (TINY, SQUARE):
        before = machine.cuda.allocated
        features = device.encode_image(noise(size)).features
        rows = len(features.image_features) + len(features.selected_features)
        assert machine.cuda.allocated - before == rows * read_manifest(path).model.hidden_size * 4


def test_the_selection_alone_chooses_as_the_vision_graph_does(built: Any) -> None:
    _, path = built("llava_next")
    select = load_selection(None, EngineDirectory.open(path), device=None, threads=None)
    assert select is not None
    device = Pipeline.from_dir(path)
    for size in (SQUARE, TINY):
        features = device.encode_image(noise(size)).features
        for rows in (features.image_features, np.asarray(features.image_features)):
            np.testing.assert_array_equal(select(rows), features.selection_order)


def test_engines_for_pictures_of_other_sizes_are_built_again(
    built: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, path = built("llava_next")
    manifest = read_manifest(path)
    crops = manifest.dims["crops"]
    larger = manifest.dims | {"crops": replace(crops, maximum=crops.maximum + 2)}
    other = copy_engine(path, tmp_path / "other", dims=larger)
    assert build([str(other), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "was built for pictures of other sizes: exported again since" in printed
    assert f"picture with crops {crops.minimum}-{crops.maximum + 2} (best at" in printed


def test_a_dimension_without_a_range_is_refused(
    built: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, path = built("llava_next")
    dims: dict[str, DimRange] = dict(read_manifest(path).dims)
    del dims["crops"]
    other = copy_engine(path, tmp_path / "other", dims=dims)
    assert build([str(other), "--force", "-q"]) == 2
    error = capsys.readouterr().err
    assert "vision/model" in error
    assert "crops" in error
