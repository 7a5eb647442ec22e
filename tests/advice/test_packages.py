"""Advice to install something: what it names brings what was missing, and that was all."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from PIL import Image

from divprune.export import families as export_families
from divprune.export.verify import check_onnxruntime
from divprune.runtime import families
from divprune.runtime.directory import manifest
from divprune.runtime.directory.manifest import SCHEMA_VERSION
from divprune.runtime.directory.manifest_json import checksum
from divprune.runtime.inputs.video import load_video
from divprune.runtime.serving.batch.cluster import import_ray
from divprune.runtime.serving.batch.table import import_pyarrow
from divprune.runtime.serving.ray_app import build
from divprune.runtime.serving.server import require_packages
from tests.advice.covered import PACKAGES
from tests.advice.selector_package import MODULE, new_environment, write_package, write_wheel
from tests.advice.sites import ROOT
from tests.advice.test_directories import edited
from tests.advice.tools import Refusal, assert_gave, attempt, follow, refused
from tests.export.selection.test_registry import FIRST_ROWS
from tests.runtime.engine_copies import copy_engine
from tests.runtime.inputs.test_video import write_video

CALLS: dict[str, tuple[str, Callable[[], object]]] = {
    # Name: (the module that is missing, what needs it).
    "ray": ("ray", import_ray),
    "pyarrow": ("pyarrow.parquet", import_pyarrow),
    "starlette": ("starlette", require_packages),
    "uvicorn": ("uvicorn", require_packages),
}
COMMANDS = {
    "onnxscript": ("onnxscript", "divprune-export --model {checkpoint} --keep 0.1 --output new"),
    "onnxruntime": ("onnxruntime", "divprune-run {engine} {picture} -q --max-new-tokens 1"),
}


def brought_by(fix: str) -> dict[str, Requirement]:
    """The requirements by their names that the ``pip install`` of an advice would install."""
    command = re.split(r", (?:or|which) ", fix)[0]
    words = shlex.split(command.removeprefix("pip install ").removeprefix("--upgrade "))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in map(Requirement, words):
        if requirement.name == project["name"]:
            assert requirement.extras
            lists = (project["optional-dependencies"][extra] for extra in requirement.extras)
            found |= {each.name: each for list_ in lists for each in map(Requirement, list_)}
        else:
            found[requirement.name] = requirement
    return found


@pytest.fixture
def places(engine_dir: Path, checkpoint: Callable[[str], Path], tmp_path: Path) -> dict[str, Path]:
    picture = tmp_path / "picture.png"
    Image.linear_gradient("L").convert("RGB").save(picture)
    return {"engine": engine_dir, "checkpoint": checkpoint("clip-llama-hub"), "picture": picture}


def check(name: str, module: str, refusal: Refusal) -> None:
    assert_gave(refusal, PACKAGES[name])
    assert module.partition(".")[0] in brought_by(refusal.fix)


@pytest.mark.parametrize("name", CALLS)
def test_the_package_named_brings_the_module_that_is_missing(monkeypatch, name):
    module, call = CALLS[name]
    pytest.importorskip(module)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, module, None)
        refusal = refused(call)
    check(name, module, refusal)
    call()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_extra_named_brings_what_the_command_needs(places, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    module, command = COMMANDS[name]
    words = shlex.split(command.format(**places))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, module, None)
        refusal = attempt(words, whole=False)
    check(name, module, refusal)
    assert attempt(words, whole=False).code == 0


def test_the_extra_for_videos_reads_them(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 2)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        refusal = refused(lambda: load_video(path))
    check("av", "av", refusal)
    assert len(load_video(path).frames) == 2


def test_ray_serve_is_what_the_extra_for_batches_brings(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    refusal = refused(lambda: build({"engine_dir": "engine"}))
    check("ray serve", "ray", refusal)
    assert brought_by(refusal.fix)["ray"].extras == {"serve"}


def test_a_heic_picture_is_saved_as_jpeg(places, tmp_path, monkeypatch):
    heic = tmp_path / "a.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    run = "divprune-run {} {} -q --max-new-tokens 1"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    refusal = attempt(run.format(places["engine"], heic).split())
    assert_gave(refusal, PACKAGES["pillow-heif"])
    assert "pillow-heif" in brought_by(refusal.fix)
    Image.open(places["picture"]).save(tmp_path / "a.jpg")
    assert attempt(run.format(places["engine"], tmp_path / "a.jpg").split()).code == 0


def test_an_onnxruntime_that_is_new_enough_runs(places, tmp_path, monkeypatch):
    import onnxruntime

    engine = copy_engine(places["engine"], tmp_path / "newer", requires={"onnxruntime": "99.1"})
    words = f"divprune-run {engine} {places['picture']} -q --max-new-tokens 1".split()
    refusal = attempt(words)
    check("an old onnxruntime", "onnxruntime", refusal)
    assert "99.1" in brought_by(refusal.fix)["onnxruntime"].specifier
    monkeypatch.setattr(onnxruntime, "__version__", "99.1")
    assert attempt(words).code == 0


def test_the_check_of_an_export_takes_a_newer_onnxruntime_or_is_skipped(
    places, tmp_path, monkeypatch
):
    words = f"divprune-export --model {places['checkpoint']} --keep 0.1 --target tensorrt"
    words += f" --output {tmp_path / 'engine'}"
    monkeypatch.setattr(check_onnxruntime.__globals__["importlib"].metadata, "version", _old)
    refusal = attempt(words.split(), whole=False)
    check("an old onnxruntime at export", "onnxruntime", refusal)
    assert refusal.fix.endswith("skip the check with --no-verify")
    assert attempt([*words.split(), "--no-verify"], whole=False).code == 0
    monkeypatch.undo()
    assert attempt(words.split(), whole=False).code == 0


def _old(package: str) -> str:
    return "1.18.0"


def test_the_package_with_the_family_is_installed(places, tmp_path, monkeypatch):
    engine = copy_engine(places["engine"], tmp_path / "engine", model__family="toy")
    words = f"divprune-run {engine} {places['picture']} -q --max-new-tokens 1".split()
    assert_gave(attempt(words), PACKAGES["a family of a package"])
    toy = EntryPoint("toy", "divprune.runtime.families.llava:FAMILY", families.ENTRY_POINTS)
    monkeypatch.setattr(families, "entry_points", lambda group: [toy])
    assert attempt(words).code == 0


def test_a_graph_of_a_later_opset_is_taken_by_an_onnxruntime_that_knows_it(
    places, tmp_path, monkeypatch
):
    def ask(opset: int) -> Refusal:
        def change(graph: bytes) -> bytes:
            model = onnx.load_model_from_string(graph)
            model.opset_import[0].version = opset
            return model.SerializeToString()

        edited("llm/model.onnx", change)(places["engine"], engine := tmp_path / f"opset-{opset}")
        return attempt(f"divprune-run {engine} {places['picture']} -q --max-new-tokens 1".split())

    onnx = pytest.importorskip("onnx")
    refusal = ask(99)
    check("a graph of a later opset", "onnxruntime", refusal)
    # ONNX Runtime has the operators of the next opset already, behind a switch.
    later = int(re.search(r"till opset (\d+)", refusal.message)[1]) + 1
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")
    assert ask(later).code == 0
    monkeypatch.delenv("ALLOW_RELEASED_ONNX_OPSET_ONLY")
    shutil.rmtree(tmp_path / f"opset-{later}")
    check("a graph of a later opset", "onnxruntime", ask(later))


def test_what_is_no_graph_is_exported_again(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    engine = copy_engine(places["engine"], tmp_path / "e", files={"llm/model.onnx": b"no graph"})
    words = f"divprune-run {engine} {places['picture']} -q --max-new-tokens 1".split()
    refusal = attempt(words)
    assert_gave(refusal, PACKAGES["a graph of a later opset"])
    assert attempt(follow(words, refusal)).code == 0


def test_a_selector_that_does_not_load_is_upgraded_or_another_one_taken(
    places, tmp_path, monkeypatch
):
    site = new_environment(tmp_path / "environment", monkeypatch)
    write_package(site, "0.9", "from divprune.export.selection import NameOfLongAgo")
    words = f"divprune-export --model {places['checkpoint']} --keep 0.1 --output {tmp_path / 'new'}"
    words = [*words.split(), "--selector", "first-rows"]
    refusal = attempt(words, whole=False)
    assert_gave(refusal, PACKAGES["a selector that does not load"])
    assert attempt([*words[:-1], "divprune"], whole=False).code == 0

    write_wheel(tmp_path / "index", "1.0", FIRST_ROWS)
    command = shlex.split(refusal.fix.partition(", or ")[0])
    environment = str(tmp_path / "environment" / "bin" / "python")
    pip = [sys.executable, "-m", "pip", "--python", environment, *command[1:]]
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "index")}
    subprocess.run(pip, env=os.environ | offline, check=True, capture_output=True)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    importlib.invalidate_caches()
    assert attempt(words, whole=False).code == 0


def test_the_image_processor_of_a_family_from_a_package_is_named_by_its_model(
    places, tmp_path, monkeypatch
):
    transformers = pytest.importorskip("transformers")
    config = type("ToyConfig", (transformers.LlavaConfig,), {"model_type": "toy"})
    models = transformers.AutoModelForImageTextToText._model_mapping._extra_content
    monkeypatch.setitem(transformers.CONFIG_MAPPING._extra_content, "toy", config)
    monkeypatch.setitem(models, config, transformers.LlavaForConditionalGeneration)
    toy = EntryPoint("toy", "divprune.export.families.llava:FAMILY", export_families.ENTRY_POINTS)
    monkeypatch.setattr(export_families, "entry_points", lambda group: [toy])
    source = Path(shutil.copytree(places["checkpoint"], tmp_path / "checkpoint"))
    (source / "processor_config.json").unlink(missing_ok=True)
    processor = source / "preprocessor_config.json"
    whole = json.loads(processor.read_text())
    content = json.loads((source / "config.json").read_text()) | {"model_type": "toy"}
    (source / "config.json").write_text(json.dumps(content))
    processor.write_text(json.dumps(whole | {"image_processor_type": None}))
    words = f"divprune-export --model {source} --keep 0.1 --output {tmp_path / 'new'}".split()
    refusal = attempt(words, whole=False)
    assert_gave(refusal, PACKAGES["an image processor of a package's family"])
    processor.write_text(json.dumps(whole))
    assert attempt(words, whole=False).code == 0


def test_the_version_that_wrote_a_directory_reads_it(places, tmp_path, monkeypatch):
    newer = Path(shutil.copytree(places["engine"], tmp_path / "engine"))
    content = json.loads((newer / "manifest.json").read_text())
    content["schema_version"] = SCHEMA_VERSION + 1
    (newer / "manifest.json").write_text(json.dumps(content | {"checksum": checksum(content)}))
    words = f"divprune-run {newer} {places['picture']} -q --max-new-tokens 1".split()
    assert_gave(attempt(words), PACKAGES["a newer manifest"])
    monkeypatch.setattr(manifest, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
    assert attempt(words).code == 0
