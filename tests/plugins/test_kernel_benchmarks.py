"""The scripts that measure the kernel, as far as they run without a GPU."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from benchmarks.generated_table import RESULTS
from benchmarks.kernel_resources import CAPABILITIES, MANY, measure, parse
from benchmarks.kernel_table import main, render
from divprune.plugins.ptx import read_ptx
from tests.plugins.matrices import matrix

REPORT = """\
ptxas info    : Compiling entry function 'greedy_max_min_2' for 'sm_80'
ptxas info    : Function properties for greedy_max_min_2
    8 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compiling entry function 'greedy_max_min_1' for 'sm_80'
ptxas info    : Function properties for greedy_max_min_1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 384 bytes cmem[0]
"""
TIMES = {"p50_ms": 0.057, "p10_ms": 0.05, "p90_ms": 0.06}
LATENCY = {
    "device": "Some GPU",
    "capability": "8.7",
    "driver": "CUDA 12.6",
    "torch": "2.13.0",
    "created": "2026-11-21T00:00:00+00:00",
    "warmup": 5,
    "iters": 30,
    "rows": [
        {
            "num_tokens": 576,
            "num_kept": 58,
            "kernel": TIMES,
            "published": TIMES | {"p50_ms": 2.28},
            "running": TIMES | {"p50_ms": 1.14},
        }
    ],
}


def test_report_of_ptxas_is_read() -> None:
    one, two = parse(REPORT, "80")
    assert (one["entry"], one["registers"], one["spill_bytes"]) == ("greedy_max_min_1", 28, 0)
    assert (one["shared_bytes"], one["stack_bytes"]) == (0, 0)
    assert (two["entry"], two["registers"], two["spill_bytes"]) == ("greedy_max_min_2", 32, 16)
    assert (two["shared_bytes"], two["stack_bytes"], two["barriers"]) == (512, 8, 1)


def test_committed_resources_are_those_of_the_shipped_ptx_and_nothing_spills() -> None:
    report = json.loads((RESULTS / "kernel-resources.json").read_text())
    assert report["ptx_sha256"] == hashlib.sha256(read_ptx().encode()).hexdigest()
    assert len(report["rows"]) == 10 * len(CAPABILITIES)
    for file in MANY:
        many = report["many"][file.ptx.name]
        assert many["ptx_sha256"] == hashlib.sha256(read_ptx(file.ptx).encode()).hexdigest()
        assert max(row["registers"] for row in many["rows"]) <= 128
    for row in report["rows"]:
        assert row["spill_bytes"] == row["stack_bytes"] == 0, row
        assert row["registers"] <= 64, row
        assert (row["barriers"], row["shared_bytes"]) == (1, 512), row


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="ptxas of the CUDA toolkit is missing")
def test_kernel_compiles_without_spilling_for_every_capability() -> None:
    rows = measure()["rows"]
    assert {row["capability"] for row in rows} == set(CAPABILITIES)
    assert {row["spill_bytes"] for row in rows} == {0}


def test_committed_table_is_what_the_reports_say() -> None:
    assert (RESULTS / "kernel.md").read_text(encoding="utf-8") == render(RESULTS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(RESULTS / "kernel-resources.json", tmp_path)
    return tmp_path


def test_table_says_when_there_is_no_report(folder: Path) -> None:
    assert "No report yet" in render(folder)


def test_every_latency_has_a_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    (folder / "kernel-latency-gpu.json").write_text(json.dumps(LATENCY))
    assert main([str(folder), "--check"]) == 1
    assert "is out of date" in capsys.readouterr().err
    assert main([str(folder)]) == 0
    assert main([str(folder), "--check"]) == 0
    text = (folder / "kernel.md").read_text(encoding="utf-8")
    assert "| Some GPU | 576 | 58 | 0.0570 | 1.00 | 2.28 | 1.14 | 40 and 20 |" in text
    assert "No report yet" not in text


@pytest.mark.parametrize("num_kept", [1, 2, 40])
def test_torch_loops_choose_as_the_reference(num_kept: int) -> None:
    torch = pytest.importorskip("torch", reason="the contestants are written in torch")
    from benchmarks.kernel_latency import choose_as_published, choose_with_running_minimum
    from divprune.export.selection.divprune import greedy_max_min

    gram = matrix("cosines", 300)
    expected = greedy_max_min(gram, num_kept).tolist()
    distance = 1 - torch.from_numpy(gram)
    for choose in (choose_as_published, choose_with_running_minimum):
        assert choose(distance, expected[0], num_kept).tolist() == expected


def test_latency_without_a_gpu_says_so_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch", reason="the contestants are written in torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    from benchmarks.kernel_latency import main as measure_latency

    assert measure_latency(["--output", str(tmp_path / "report.json")]) == 2
    assert "an NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_latency_is_measured_on_a_gpu(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the contestants are written in torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no NVIDIA GPU")
    from benchmarks.kernel_latency import SHAPES
    from benchmarks.kernel_latency import main as measure_latency

    output = tmp_path / "report.json"
    assert measure_latency(["--output", str(output), "--iters", "3", "--warmup", "1"]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["num_tokens"], row["num_kept"]) for row in rows] == list(SHAPES)
