"""The load test of ``benchmarks/serving_load.py``, shorter."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.serving_load import load_test, metrics_agree
from tests.runtime.serving.serving_process import noise_png

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def test_no_request_is_lost_or_answered_twice_under_impolite_load(engine_dir: Path) -> None:
    pictures = {f"{seed}.png": noise_png(seed) for seed in range(3)}
    report = load_test(engine_dir, pictures, clients=8, requests=160)
    assert report["checks"]
    assert all(report["checks"].values()), report
    assert report["counts"]["clients"]["hung up"]
    assert report["counts"]["clients"]["400"]
    assert report["counts"]["clients"]["413"]


def test_counts_that_differ_are_noticed() -> None:
    seen = {"200": 5, "400": 2, "413": 1, "413 unread": 1, "429": 3, "hung up": 4}
    counted = {"200": 6, "400": 2, "413": 2, "429": 4, "499": 2}
    counts = {"clients": seen, "server": counted, "left": {"running": 0.0, "waiting": 0.0},
              "tokens": {"clients": 50, "server": 60}}  # fmt: skip
    assert metrics_agree(counts)
    for status, count in counted.items():
        for change in (-1, 1):
            wrong = counted | {status: count + change}
            assert not metrics_agree(counts | {"server": wrong}), status
    assert not metrics_agree(counts | {"tokens": {"clients": 50, "server": 49}})
    assert not metrics_agree(counts | {"tokens": {"clients": 50, "server": 100}})
    assert not metrics_agree(counts | {"left": {"running": 0.0, "waiting": 1.0}})
