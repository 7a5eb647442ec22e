from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers.tables import render

ROOT = Path(__file__).parents[2]
PEERS = ROOT / "benchmarks" / "peers"
REPORTS = sorted((ROOT / "benchmarks" / "results").glob("peers-*.json"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_committed_table_is_what_the_report_says(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == render(report)


def _sample(number: int, worker: str, kept: int, **values: float) -> dict[str, Any]:
    return {"round": number, "worker": worker, "kept_tokens": kept, "peak_rss": 2**30, **values}


def _report() -> dict[str, Any]:
    samples = [
        sample
        for number, drift in ((1, 1.0), (2, 3.0), (3, 1.5))
        for sample in (
            _sample(number, "ours", 576, ttft=2 * drift),
            _sample(number, "ours", 58, ttft=drift),
            _sample(number, "theirs", 576, ttft=4 * drift),
            _sample(number, "theirs", 58),
        )
    ]
    facts = {"runtime": "R", "version": "1.0", "weights": "int4"}
    return {
        "date": "2026-11-26",
        "machine": {"cpu": "C", "cores": 2, "load_before": 0.25},
        "model": "M",
        "side": 336,
        "image_tokens": 576,
        "new_tokens": 8,
        "workers": {"ours": facts, "theirs": facts | {"weights": "int4, symmetric"}},
        "samples": samples,
    }


def test_ratios_are_taken_round_by_round_so_that_drift_cancels() -> None:
    text = render(_report())
    assert "| theirs | 576 over 576 |  |  | 0.50 (0.50-0.50) |" in text
    assert "| theirs | 58 over 576 |  |  | 0.25 (0.25-0.25) |" in text


def test_what_a_runtime_cannot_answer_has_no_row() -> None:
    text = render(_report())
    assert "| theirs | 576 |" in text
    assert "| theirs | 58 |" not in text
    assert "58 over 58" not in text


def test_two_rows_of_one_runtime_are_told_apart() -> None:
    text = render(_report())
    assert "| ours | R 1.0 | int4 |" in text
    assert "| theirs | R 1.0 | int4, symmetric |" in text


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="the tile registers are of x86-64, the filter of Linux",
)
def test_a_process_is_refused_the_tile_registers() -> None:
    ask = (
        "import ctypes, errno; libc = ctypes.CDLL(None, use_errno=True);"
        "refused = libc.syscall(158, 0x1023, 18) == -1 and ctypes.get_errno() == errno.EPERM;"
        "print(refused, libc.getpid() > 0)"
    )
    command = [sys.executable, str(PEERS / "without_amx.py"), sys.executable, "-c", ask]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        "True True\n"
    )
