"""Advice where float16 does not hold a model's numbers: the same export in float32 answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="exporting needs torch")

from safetensors.numpy import load_file, save_file

from tests.advice.covered import ELSEWHERE
from tests.advice.tools import Refusal, assert_gave, attempt, follow

ACTIVATIONS = "export/verify/activations.py::check_half::'--dtype fp32'"
(ROUNDING,) = (key for key in ELSEWHERE if key.startswith("export/verify/comparison.py::compare"))
FEATURES = "runtime/generation/kept_tokens.py::_check_finite::'export again with --dtype fp32'"
LOGITS = "runtime/generation/sampling.py::Sampler.__call__::'export again with --dtype fp32'"


@pytest.fixture
def scaled(checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[[str, float], Path]:
    """A copy of a checkpoint with one weight, by the end of its name, as large as it may be."""

    def scale(ending: str, largest: float) -> Path:
        copy = tmp_path / "checkpoint"
        shutil.copytree(checkpoint("clip-llama-hub"), copy)
        found = 0
        for path in copy.glob("*.safetensors"):
            tensors = load_file(path)
            for name in [name for name in tensors if name.endswith(ending)]:
                tensors[name] *= largest / abs(tensors[name]).max()
                found += 1
            save_file(tensors, path, metadata={"format": "pt"})
        assert found
        return copy

    return scale


def export_words(source: Path, output: Path, *more: str) -> list[str]:
    words = f"divprune-export --model {source} --keep 0.1 --dtype fp16 --output {output} -q"
    return [*words.split(), *more]


def ask(root: Path, engine: Path) -> Refusal:
    picture = root / "benchmarks" / "picture.jpg"
    return attempt(f"divprune-run {engine} {picture} --max-new-tokens 4".split())


def test_an_export_whose_self_check_finds_an_overflow_is_made_in_float32(scaled, tmp_path):
    words = export_words(scaled("linear_2.weight", 6e4), tmp_path / "engine")
    refusal = attempt(words)
    assert_gave(refusal, ACTIVATIONS)
    assert attempt(follow(words, refusal)).code == 0


def test_an_export_that_differs_from_transformers_is_made_in_float32_if_rounding_was_the_cause(
    checkpoint, tmp_path
):
    source = Path(shutil.copytree(checkpoint("clip-llama-hub"), tmp_path / "checkpoint"))
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if "position_embedding" in name]:
            tensors[name] += 1000  # the layer norm behind it subtracts that again
        save_file(tensors, path, metadata={"format": "pt"})
    words = export_words(source, tmp_path / "engine")
    refusal = attempt(words)
    assert_gave(refusal, ROUNDING)
    report, _, told = refusal.fix.partition("; ")
    assert report == "report this with the model's config.json"
    option, value, *_ = told.split()
    assert attempt([*words, option, value]).code == 0


@pytest.mark.parametrize(
    ("ending", "key"),
    [("linear_2.weight", FEATURES), ("model.layers.0.self_attn.v_proj.weight", LOGITS)],
)
def test_an_engine_that_overflows_is_exported_again_in_float32(scaled, root, tmp_path, ending, key):
    source, engine = scaled(ending, 6e4), tmp_path / "engine"
    assert attempt(export_words(source, engine, "--no-verify")).code == 0
    refusal = ask(root, engine)
    assert_gave(refusal, key)
    advised = refusal.fix.removeprefix("export again with ").split()
    assert attempt(export_words(source, tmp_path / "other", "--no-verify", *advised)).code == 0
    assert ask(root, tmp_path / "other").code == 0
