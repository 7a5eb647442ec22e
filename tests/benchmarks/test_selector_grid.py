from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from benchmarks import selector_grid


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


def run(work, output):
    places = ["--work", str(work), "--output", str(output)]
    selector_grid.main(["--scenes", "2", "--selectors", "divprune", "--processes", "1", *places])
    return {
        split: json.loads((output / f"selector-grid-{split}.json").read_text())
        for split in selector_grid.SPLITS
    }


def test_every_keep_is_in_the_report_of_each_split_and_a_second_run_asks_nothing(work, tmp_path):
    reports = run(work, tmp_path / "first")
    for split, report in reports.items():
        assert [row["keep"] for row in report["rows"]] == list(selector_grid.KEEPS)
        assert report["data"]["pictures"] == 2
        assert all(row["answers"] == report["data"]["samples"] for row in report["rows"])
        assert (tmp_path / "first" / f"selector-grid-{split}.png").exists()
    logs = {path: path.read_bytes() for path in work.rglob("divprune*.jsonl")}
    assert len(logs) == 2
    again = run(work, tmp_path / "again")
    assert {path: path.read_bytes() for path in logs} == logs
    for split, report in again.items():
        assert report["rows"] == reports[split]["rows"]


def test_selectors_get_an_engine_for_each_layer_and_if_not_nested_each_keep():
    engines = selector_grid.plan_engines(["random", "uniform", "fastv", "vtw"], [1, 2])
    labels = [engine.label for engine in engines]
    keeps = [f"uniform-keep{keep:g}" for keep in selector_grid.PRUNED]
    fastv = ["fastv-layer1-keep0.5", "fastv-layer2-keep0.5"]
    assert labels == ["random-keep0.5", *keeps, *fastv, "vtw-layer1", "vtw-layer2"]


def test_other_weights_have_a_key_of_their_own(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = selector_grid.checkpoint_key(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert selector_grid.checkpoint_key(tmp_path) != first
