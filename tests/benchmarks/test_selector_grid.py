from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from benchmarks import grid_engines, selector_grid, selector_ttft
from benchmarks.grid_result import SPLITS


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def only_vtw(work):
    """A result with one point besides keep 1.0."""
    assert run(work, work / "vtw", "--selectors", "vtw", "--vtw-layers", "1") == 0
    return work / "vtw"


@pytest.fixture
def output(only_vtw, tmp_path):
    return shutil.copytree(only_vtw, tmp_path / "output")


def run(work, output, *options, scenes=2):
    places = ["--work", str(work), "--output", str(output)]
    return selector_grid.main(["--scenes", str(scenes), "--processes", "1", *places, *options])


def read(folder):
    return {
        split: json.loads((folder / f"selector-grid-{split}.json").read_text()) for split in SPLITS
    }


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rows_that_are_missing_are_added_and_the_others_are_not_asked_again(work, output):
    before = read(output)
    for split, result in before.items():
        whole, vtw = result["report"]["rows"]
        assert (whole["keep"], vtw["keep"], vtw["num_kept"], vtw["layer"]) == (1.0, 0.0, 0, 1)
        assert vtw["layer_tokens"] == 196 / 4
        assert vtw["ttft_ms"] is None
        assert (output / f"selector-grid-{split}.png").exists()
    logs = {path: path.read_bytes() for path in work.rglob("vtw*.jsonl")}
    assert len(logs) == 2
    for path in logs:
        path.unlink()  # were it asked again, it would be here again
    assert run(work, output, "--selectors", "divprune,vtw", "--vtw-layers", "1") == 0
    assert not any(path.exists() for path in logs)
    for path, content in logs.items():
        path.write_bytes(content)
    for split, result in read(output).items():
        rows = result["report"]["rows"]
        assert [row["keep"] for row in rows] == [*grid_engines.KEEPS, 0.0]
        assert [rows[0], rows[-1]] == before[split]["report"]["rows"]
        assert all(row["answers"] == result["report"]["data"]["samples"] for row in rows)
    complete = contents(output)
    assert run(work, output, "--selectors", "divprune,vtw", "--vtw-layers", "1") == 0
    assert contents(output) == complete


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("weights",), "0" * 12, "its weights differ"),
        (("report", "data", "sha256"), "0" * 64, "its questions differ"),
        (("report", "rows", 0, "score", "value"), 0.125, "does not answer as it did"),
        (("report", "rows", 0, "score"), None, "no result of this version"),
    ],
)
def test_rows_of_something_else_are_refused_and_the_result_stays(
    work, output, capsys, path, value, message
):
    for split, result in read(output).items():
        part = result
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        del result["report"]["rows"][1:]  # vtw, whose answers are in the logs
        (output / f"selector-grid-{split}.json").write_text(json.dumps(result))
    before = contents(output)
    assert run(work, output, "--selectors", "vtw", "--vtw-layers", "1") == 2
    assert message in capsys.readouterr().err
    assert contents(output) == before


def test_times_are_added_without_touching_the_scores(work, output, capsys):
    before = read(output)
    places = ["--work", str(work), "--output", str(output), "--processes", "1"]
    assert selector_ttft.main([*places, "--seconds", "0", "--pictures", "1"]) == 0
    assert "| vtw | 1 |" in capsys.readouterr().out
    for split, result in read(output).items():
        timing = result["timing"]
        assert timing["rounds"] == selector_ttft.LEAST_ROUNDS
        whole, vtw = timing["points"]
        assert (whole["selector"], whole["keep"], whole["ratio"]) == ("uniform", 1.0, 1.0)
        assert vtw["ttft_low"] <= vtw["ttft_ms"] <= vtw["ttft_high"]
        assert vtw["ratio_low"] <= vtw["ratio"] <= vtw["ratio_high"]
        rows = result["report"]["rows"]
        assert [row["ttft_ms"] for row in rows] == [whole["ttft_ms"], vtw["ttft_ms"]]
        assert [row | {"ttft_ms": None} for row in rows] == before[split]["report"]["rows"]


def test_times_of_other_weights_or_without_a_result_are_refused(work, output, tmp_path, capsys):
    places = ["--work", str(work), "--processes", "1"]
    assert selector_ttft.main([*places, "--output", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    path = output / "selector-grid-hard.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "0" * 12}))
    before = contents(output)
    assert selector_ttft.main([*places, "--output", str(output)]) == 2
    assert "has no rows of this checkpoint" in capsys.readouterr().err
    assert contents(output) == before


def test_the_slower_a_point_is_than_keep_one_in_its_rounds_the_higher_its_ratio():
    whole, point = selector_ttft.Point("uniform", None, 1.0), selector_ttft.Point("vtw", 1, 0.0)
    rounds = [{whole: [10.0 * n, 10.0 * n, 90.0 * n], point: [5.0 * n]} for n in (1, 7, 2, 40, 3)]
    timing = selector_ttft.describe([whole, point], rounds, load=0.5, pictures=1)
    first, second = timing.points
    assert (first.ttft_ms, first.ratio) == (30.0, 1.0)
    assert (second.ttft_ms, second.ratio_low, second.ratio, second.ratio_high) == (
        15,
        0.5,
        0.5,
        0.5,
    )


def test_selectors_get_an_engine_for_each_layer_and_if_not_nested_each_keep():
    engines = grid_engines.plan_engines(["random", "uniform", "fastv", "vtw"], [1, 2], [3])
    labels = [engine.label for engine in engines]
    keeps = [f"uniform-keep{keep:g}" for keep in grid_engines.PRUNED]
    fastv = ["fastv-layer1-keep0.5", "fastv-layer2-keep0.5"]
    assert labels == ["random-keep0.5", *keeps, *fastv, "vtw-layer3"]


def test_other_weights_have_a_key_of_their_own(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    first = grid_engines.checkpoint_key(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert grid_engines.checkpoint_key(tmp_path) != first
