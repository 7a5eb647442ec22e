from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.generated_table import RESULTS
from benchmarks.serving_overhead import Timed, compare, judge
from benchmarks.serving_table import main, render

OVERHEAD: dict[str, Any] = {
    "engine": "tiny",
    "threads": 1,
    "picture": "photo",
    "request_kb": 40,
    "rounds": 3,
    "answer_tokens": 64,
    "ttft_ms": {"api": 10.0, "server": 12.0},
    "ttft_overhead_ms": 2.5,
    "of_that_ms": {"server": {"median": 1.5, "p10": 1.0, "p90": 2.0}},
    "ms_per_token": {"api": 1.0, "server": 1.01},
    "tokens_per_second_lost": 0.01,
    "idle_mib_above_the_pipeline": 20.0,
    "start_s": {"pipeline": 1.0, "server": 1.3},
    "start_beyond_loading_s": 0.3,
}


MACHINE = {"cpu": "some CPU", "cores": 2, "load_average_at_end": 0.1}


def report_of(engine: dict[str, Any]) -> str:
    return json.dumps({"machine": MACHINE, "engines": [engine | {"checks": judge(engine)}]})


def test_the_committed_table_is_what_the_reports_say() -> None:
    assert (RESULTS / "serving.md").read_text(encoding="utf-8") == render(RESULTS)


def test_a_table_that_is_out_of_date_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "serving-overhead.json"
    file.write_text(report_of(OVERHEAD))
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path), "--check"]) == 0
    slower = OVERHEAD | {"ttft_overhead_ms": 3.5}
    file.write_text(report_of(slower))
    assert main([str(tmp_path), "--check"]) == 1
    assert "is out of date" in capsys.readouterr().err
    assert "- **no**: at most 3 ms to the first token, by the client's" in render(tmp_path)


@pytest.mark.parametrize(("load", "busy"), [(1.9, False), (2.6, True)])
def test_a_machine_that_did_something_else_is_named(
    load: float, busy: bool, tmp_path: Path
) -> None:
    report = json.loads(report_of(OVERHEAD))
    report["machine"]["load_average_at_end"] = load
    (tmp_path / "serving-overhead.json").write_text(json.dumps(report))
    assert ("Something else was running" in render(tmp_path)) == busy


@pytest.mark.parametrize(
    "change",
    [
        {"ttft_overhead_ms": 3.1},
        {"of_that_ms": {"server": {"median": 3.1}}},
        {"tokens_per_second_lost": 0.021},
        {"idle_mib_above_the_pipeline": 41.0},
        {"start_beyond_loading_s": 0.51},
    ],
)
def test_each_limit_is_judged_by_itself(change: dict[str, Any]) -> None:
    assert list(judge(OVERHEAD).values()) == [True] * 5
    assert sorted(judge(OVERHEAD | change).values()) == [False, True, True, True, True]


def test_difference_is_that_within_a_round() -> None:
    api = [Timed(10, 1, 64), Timed(100, 2, 64), Timed(20, 4, 64)]
    served = [Timed(12, 1.25, 64, 11, 9), Timed(103, 2, 64, 99, 98), Timed(21, 5, 64, 20.5, 17)]
    found = compare(api, served)
    assert found["ttft_overhead_ms"] == 2
    assert found["tokens_per_second_lost"] == 0.2
    assert found["ttft_ms"] == {"api": 20, "server": 21}
    assert {part: spread["median"] for part, spread in found["of_that_ms"].items()} == {
        "server": 2,
        "pipeline in the server, beside the API": -2,
        "connection and client": 1,
    }
