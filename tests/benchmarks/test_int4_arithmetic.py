from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")

from benchmarks.int4_arithmetic import BASIC, compare

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "results" / "int4-arithmetic.json"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return compare(tmp_path_factory.mktemp("int4"), 1)


@pytest.mark.parametrize(
    "arithmetic, most", [("8-bit activations", 0.03), ("float activations", 0.005)]
)
def test_both_arithmetics_of_int4_stay_close_to_the_dequantised_model(report, arithmetic, most):
    assert 0 < report[arithmetic]["relative_distance_max"] < most
    assert report[arithmetic]["same_token_ids"] == report["answers"] == 4


def test_the_published_report_is_of_the_same_model_and_says_the_same(report):
    published = json.loads(PUBLISHED.read_text())
    assert published.keys() == report.keys()
    assert published["8-bit activations"]["same_token_ids"] == published["answers"]
    assert published["float activations"]["same_token_ids"] == published["answers"]
    if report["onnxruntime"] == published["onnxruntime"]:
        for name in ("8-bit activations", BASIC):
            a, b = (each[name]["relative_distance_mean"] for each in (report, published))
            assert a == pytest.approx(b, rel=0.5)
