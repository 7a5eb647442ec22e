"""The quarter of an hour with a GPU, rehearsed on the CPU at the smallest sizes."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from benchmarks.gpu_day import run
from benchmarks.gpu_table import render


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The folder, and the seconds of processor time that it took."""
    output = tmp_path_factory.mktemp("rehearsal")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("work")))
        patch.setenv("GPU_DAY_OUTPUT", str(output))
        arguments = ["--device", "cpu", "--quick", "--output", str(output)]
        assert run.main(arguments) == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return output, used


@pytest.fixture(scope="module")
def report(rehearsal: tuple[Path, float]) -> dict:
    return json.loads((rehearsal[0] / "results.json").read_text())


def test_every_step_ends_well_and_writes_what_it_found(report):
    assert {name: report[name]["exit"] for name in run.STEPS} == dict.fromkeys(run.STEPS, "0")
    assert report["kernel_order"]["cases"] == 18
    assert report["kernel_order"]["wrong"] == []
    assert report["kernel_latency"]["64/8"]["indices_equal_reference"]
    for name, cases in (("many_blocks", 18), ("many_features", 12)):
        assert (report[name]["cases"], report[name]["wrong"]) == (cases, [])
    assert report["kernel_small"]["all"] == report["device"]["all"] == "right"
    assert report["int4"]["cpu"]["relative_distance_max"] < 0.03
    assert report["recorded"]["how"].startswith("no CUDA here")
    assert report["recorded"]["wrong"] == []
    for name in ("small fp16", "small int4"):
        row = report["recorded"][name]
        assert row["same ids"] == row["answers"] == 1
        assert "decode: at fixed addresses" in row["together"]["backend"]
    for name in ("ort_llava-tiny", "ort_llava-tiny-int4"):
        assert report[name]["keep 0.1"]["prompt"] < report[name]["keep 1"]["prompt"]
        assert report[name]["selection_ms"].keys() == {"loop"}


def test_a_rehearsal_takes_less_than_two_minutes(rehearsal):
    """Of one core: what the clock says on a shared machine says nothing about the scripts."""
    assert rehearsal[1] < 120


def test_the_table_takes_what_was_written(report, tmp_path):
    (tmp_path / "gpu-rehearsal.json").write_text(json.dumps(report))
    text = render(tmp_path)
    assert "## no GPU" in text
    assert "| 64 | 8 |" in text
    assert "selection alone (loop) of \\[49, 64]" in text
    assert "| 66 | 12 | cluster, 2 x 1 x 64 |" in text
    assert "order and cover, many features, 12 cases | all those" in text
    assert "int4 on cpu: largest distance" in text
    assert "decode, small fp16: no CUDA here" in text
    assert "keep 0.1, our kernel" in text


def test_a_step_that_fails_or_takes_too_long_does_not_end_the_others(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_DAY_OUTPUT", str(tmp_path))
    steps = {
        "breaks": (20, "report.nothing_of_that_name", []),
        "hangs": (1, "run.facts", []),
        "facts": (30, "run.facts", []),
    }
    monkeypatch.setattr(run, "STEPS", steps)
    monkeypatch.setattr(run, "_STOP_BELOW", 0)
    real = run._run_step

    def slow(name: str, *arguments: object) -> None:
        real(name, *arguments) if name != "hangs" else real(name, "run.facts", [], 0.01, {})

    monkeypatch.setattr(run, "_run_step", slow)
    assert run.main(["--device", "cpu", "--output", str(tmp_path), "--steps", *steps]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["breaks"]["exit"] == "1"
    assert report["hangs"]["exit"].startswith("stopped after")
    assert report["facts"]["exit"] == "0"


def test_what_is_beyond_the_budget_is_said_and_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("GPU_DAY_OUTPUT", str(tmp_path))
    assert run.main(["--device", "cpu", "--output", str(tmp_path), "--budget", "0"]) == 0
    report = json.loads((tmp_path / "results.json").read_text())
    assert all(report[name] == {"skipped": "no time left"} for name in run.STEPS)
