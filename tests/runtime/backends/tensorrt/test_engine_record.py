"""What is said about engines that cannot be loaded, before they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from divprune.runtime.backends.tensorrt.build.build_plan import BuildRequest, make_build_plan
from divprune.runtime.backends.tensorrt.engine_record import require_record
from divprune.runtime.cli.build import main
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.errors import BackendError
from tests.runtime.backends.tensorrt.build.tiny_directory import write_directory


@pytest.fixture
def built(on_orin, tmp_path):
    on_orin()
    path = write_directory(tmp_path / "e", target="tensorrt")
    assert main([str(path), "-q"]) == 0
    return path


@pytest.fixture
def here(built):
    plan = make_build_plan(EngineDirectory.open(built), BuildRequest())
    return plan.lanes[0].surroundings


def refusal(built, here) -> BackendError:
    with pytest.raises(BackendError) as caught:
        require_record(EngineDirectory.open(built), here)
    assert caught.value.fix == f"divprune-build {built}"
    return caught.value


def test_engines_that_fit_are_accepted(built, here):
    record = require_record(EngineDirectory.open(built), here)
    assert sorted(record.engines) == ["llm", "selection", "vision"]


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("library_version", "10.3.0", "10.16.1.11"),
        ("device_name", "Orin NX", "Orin"),
        ("os", "Plan 9", None),
        ("architecture", "riscv", None),
        ("cuda", "12.2", "12.6 or newer"),
    ],
)
def test_engines_of_other_surroundings_are_refused(built, here, field, value, expected):
    error = refusal(built, replace(here, **{field: value}))
    assert error.found == value
    assert error.expected == (expected or getattr(here, field))
    assert "were built for another" in error.what


def test_another_gpu_is_told_what_there_is(built, here):
    error = refusal(built, replace(here, compute_capability="11.0", device_name="Thor"))
    assert error.expected == "engines/tensorrt-sm110 (Thor)"
    assert error.found == "tensorrt-sm87"


def test_a_directory_that_was_never_built_says_so(on_orin, here, tmp_path):
    path = write_directory(tmp_path / "new", target="tensorrt")
    assert "has not been built yet" in refusal(path, here).what


def test_a_truncated_engine_is_refused(built, here):
    engine = built / "engines/tensorrt-sm87/llm.engine"
    engine.write_bytes(engine.read_bytes()[:-10])
    error = refusal(built, here)
    assert error.what == f"{engine} is not the engine that was built"
    assert error.found == f"{engine.stat().st_size} bytes"


def test_changed_bytes_of_the_same_number_are_refused(built, here):
    engine = built / "engines/tensorrt-sm87/llm.engine"
    engine.write_bytes(bytes(len(engine.read_bytes())))
    assert str(refusal(built, here).found).startswith("SHA-256 ")


def test_a_missing_engine_is_refused(built, here):
    (built / "engines/tensorrt-sm87/vision.engine").unlink()
    assert "No such file" in str(refusal(built, here).found)


def test_engines_of_another_export_are_refused(built, here, tmp_path):
    other = write_directory(tmp_path / "other", target="tensorrt")
    (built / "engines").rename(other / "engines")
    manifest = json.loads((other / "manifest.json").read_text())
    weights = other / "vision/model.onnx.data"
    weights.write_bytes(b"new weights")
    from divprune.runtime.directory.file_hash import hash_file

    record = {"sha256": hash_file(weights), "size": weights.stat().st_size}
    manifest["files"]["vision/model.onnx.data"] = record
    from divprune.runtime.directory.manifest_json import checksum

    manifest["checksum"] = checksum(manifest)
    (other / "manifest.json").write_text(json.dumps(manifest))
    what = refusal(other, here).what
    assert "built from another vision/model.onnx.data: exported again since" in what


@pytest.mark.parametrize(
    "content, found",
    [
        ("", "Expecting value"),
        ("{}", "None"),
        ('{"record_version": 99}', "99"),
        ('{"record_version": 2}', "nothing"),
        ("[1]", "a list"),
    ],
)
def test_a_damaged_record_is_refused(built, here, content, found):
    (built / "engines/tensorrt-sm87/record.json").write_text(content)
    assert found in str(refusal(built, here).found)


def test_an_ahead_of_time_build_knows_no_device(built, here):
    path = built / "engines/tensorrt-sm87/record.json"
    record = json.loads(path.read_text())
    record["surroundings"] |= {"device_name": None, "cuda": None, "driver": None}
    path.write_text(json.dumps(record))
    require_record(EngineDirectory.open(built), here)
