"""The script that is ready for a GPU, on a tiny model on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from benchmarks.gpu_end_to_end import main, make_contestants, parse, prepare  # noqa: E402
from benchmarks.transformers_divprune import select_tokens  # noqa: E402
from divprune.export.selection.divprune import DivPrune  # noqa: E402

ARGUMENTS = "--shape llava-tiny --device cpu --dtype fp32 --warmup 0 --iters 1 --max-new-tokens 5"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def test_all_four_take_turns_and_are_reported(work, capsys):
    output = work / "report.json"
    assert main([*ARGUMENTS.split(), "--work", str(work), "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert json.loads(capsys.readouterr().out) == report
    ours, theirs = (name for name in report["runs"] if name.endswith("keep 0.1"))
    assert ours.startswith("onnxruntime ")
    assert theirs.startswith("transformers (")
    assert len(report["runs"]) == 4
    for name, found in report["runs"].items():
        assert found["samples"] == 1
        assert found["prompt_tokens"] == (37 if "0.1" in name else 81)
        assert found["ttft_ms"]["p10"] <= found["ttft_ms"]["p50"] <= found["ttft_ms"]["p90"]
    assert report["same_tokens_kept"] == {"ours": 5, "theirs_distinct": 5, "both": 5}


def test_both_give_the_same_tokens_in_float32(work):
    """What is timed does the same work: kept tokens and answers agree."""
    arguments = parse(ARGUMENTS.split())
    contestants = make_contestants(arguments, *prepare(arguments, work))
    answers = {name: run() for name, run in contestants.items()}
    for keep in ("1", "0.1"):
        ours, theirs = (a for name, a in answers.items() if name.endswith(f"keep {keep}"))
        assert ours["token_ids"] == theirs["token_ids"]
        assert ours["prompt_tokens"] == theirs["prompt_tokens"]
    assert ours["kept_indices"] == theirs["kept_indices"]


@pytest.mark.parametrize("seed", range(5))
def test_the_published_rule_agrees_with_the_reference_in_float32(seed):
    features = np.random.default_rng(seed).standard_normal((96, 32)).astype(np.float32)
    expected = DivPrune().select(features, 24)
    np.testing.assert_array_equal(select_tokens(torch.from_numpy(features), 0.25), expected)
