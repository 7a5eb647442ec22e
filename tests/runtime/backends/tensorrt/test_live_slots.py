"""How far attention looks into the cache, alone and through the backend on stand-ins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from divprune.runtime import Pipeline
from divprune.runtime.backends.tensorrt import live_slots
from divprune.runtime.backends.tensorrt.live_slots import decode_length
from divprune.runtime.backends.tensorrt.profiles import llm_profiles, profile_shapes
from divprune.runtime.cli.build import main as build
from tests.runtime.engine_copies import read_manifest
from tests.runtime.fake_machine import Machine, answer


@pytest.mark.parametrize(
    "needed, capacity, expected",
    [
        (1, 2048, 256),
        (256, 2048, 256),
        (257, 2048, 512),
        (512, 2048, 512),
        (513, 2048, 2048),  # 1024 is more than a third
        (2048, 2048, 2048),
        (600, 4096, 1024),
        (10, 512, 512),
        (30, 40, 40),
    ],
)
def test_a_decode_step_looks_at_doubling_lengths_or_at_everything(needed, capacity, expected):
    assert decode_length(needed, capacity) == expected


@pytest.fixture(params=["jetpack6", "tensorrt"])
def built(
    request: pytest.FixtureRequest,
    target_dir: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Machine, Path]:
    pytest.importorskip("onnxruntime")
    path = shutil.copytree(target_dir(request.param, "fp16"), tmp_path / "engine")
    version = "10.3.0" if request.param == "jetpack6" else "10.16.1.11"
    machine = Machine(monkeypatch, version=version)
    assert build([str(path), "-q"]) == 0
    return machine, path


def live_lengths(machine: Machine) -> list[int]:
    """Of every run of the LLM that was enqueued, recorded ones once."""
    calls = (call for call in machine.library.script.calls if call[0] == "execute")
    return [shapes["live_slots"][0] for *_, shapes in calls if "live_slots" in shapes]


def test_every_length_has_a_recording_of_its_own(built, monkeypatch):
    machine, path = built
    monkeypatch.setattr(live_slots, "SHORTEST_DECODE", 16)
    host = Pipeline.from_dir(path, backend="onnxruntime", threads=1)
    device = Pipeline.from_dir(path)
    for tokens in (40, 40):
        expected = answer(host, max_new_tokens=tokens)
        found = answer(device, max_new_tokens=tokens)
        assert found.token_ids == expected.token_ids
    in_place = read_manifest(path).dialect != "delta"
    prompt, *steps = live_lengths(machine)
    assert prompt == (expected.prompt_tokens if in_place else 1)
    # Each length is enqueued once as it is and once recorded; the second answer's are launched.
    steps = [length for length in steps if length not in (prompt, 1)]
    assert steps == [length for length in sorted(set(steps)) for _ in range(2)]
    assert set(steps) <= {16, 32, 64, 128, 512}
    assert len(set(steps)) == machine.cuda.calls.count("capture") == machine.cuda.graphs >= 2


def test_the_profiles_take_every_length_that_can_be_asked_for(built):
    _, path = built
    manifest = read_manifest(path)
    for profile in llm_profiles(manifest):
        shapes = profile_shapes(manifest.graphs["llm"], profile)
        assert shapes["live_slots"] == ((1,), (512,), (512,))
