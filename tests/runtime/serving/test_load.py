"""The load test of ``benchmarks/serving_load.py``, shorter."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving_load import load_test
from tests.runtime.serving.serving_process import noise_png

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def test_no_request_is_lost_or_answered_twice_under_impolite_load(engine_dir: Path) -> None:
    pictures = {f"{seed}.png": noise_png(seed) for seed in range(3)}
    report = load_test(engine_dir, pictures, clients=8, requests=160)
    assert report["failures"] == []
    assert report["wrong_answers"] == []
    assert report["answered_twice"] == 0
    clients, server = (report["counts"][name] for name in ("clients", "server"))
    assert server["400"] == clients["400"]
    assert server["413"] == clients["413"] + clients.get("413 unread", 0)
    # A client that hangs up late has had its answer sent, or its refusal; every other is a 499.
    hung_up = clients["hung up"]
    late = sum(server[status] - clients.get(status, 0) for status in ("200", "429"))
    assert 0 <= late <= hung_up
    assert server["499"] + late == hung_up
    assert report["counts"]["left"] == {"running": 0, "waiting": 0}
    assert set(report["sigterm"]["answers"]) <= {"200", "503"}
    assert sum(report["sigterm"]["answers"].values()) == 8
    assert report["sigterm"]["exit_code"] == 0
    sizes = report["rss_mib"]
    assert sizes["end"] - sizes["100"] < 16
