from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.generated_table import RESULTS
from benchmarks.gpu_table import main, render

H200 = RESULTS / "gpu-h200-2026-11-26.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(H200, tmp_path)
    return tmp_path


def test_the_committed_table_is_what_the_reports_say() -> None:
    assert (RESULTS / "gpu.md").read_text(encoding="utf-8") == render(RESULTS)


def test_a_table_that_is_out_of_date_is_noticed(folder, capsys):
    assert main([str(folder)]) == 0
    assert main([str(folder), "--check"]) == 0
    report = json.loads(H200.read_text())
    report["kernel_latency"]["576/58"]["kernel"]["p50_us"] = 99.0
    (folder / H200.name).write_text(json.dumps(report))
    assert main([str(folder), "--check"]) == 1
    assert "is out of date" in capsys.readouterr().err
    assert "| 576 | 58 | 99.0 |" in render(folder)


def test_what_failed_is_not_shown_as_right(folder):
    report = json.loads(H200.read_text())
    report["kernel_order"]["wrong"] = [[576, 58, "cosine", "greedy_max_min_1"]]
    report["sanitizer_racecheck"]["exit"] = "9"
    report["pytest"]["exit"] = "1"
    del report["device"]["all"]
    (folder / H200.name).write_text(json.dumps(report))
    text = render(folder)
    assert "1 wrong" in text
    assert "| compute-sanitizer, racecheck | not |" in text
    assert "exit 1" in text
    assert "2-D copies | failed |" in text


def test_steps_that_did_not_run_have_no_table(tmp_path):
    report = json.loads(H200.read_text())
    (tmp_path / "gpu-half.json").write_text(json.dumps({"facts": report["facts"]}))
    text = render(tmp_path)
    assert "NVIDIA H200" in text
    assert "ONNX Runtime" not in text
    assert "kernel, µs" not in text
