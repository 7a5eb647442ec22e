from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="the graphs are those of an export")

from benchmarks.video_selection import ALL_PAIRS, ON_DEMAND, main


def test_a_long_video_takes_less_than_the_matrix_of_its_pairs_where_rows_are_on_demand(tmp_path):
    path = tmp_path / "rows.json"
    arguments = ["--frames", "1,24", "--width", "16", "--rounds", "1", "--output", str(path)]
    assert main(arguments) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["frames"], row["similarities"]) for row in rows] == [
        (1, ALL_PAIRS), (1, ON_DEMAND), (24, ALL_PAIRS), (24, ON_DEMAND)
    ]  # fmt: skip
    pairs, on_demand = rows[2:]
    assert (pairs["tokens"], pairs["kept"]) == (24 * 144, 346)
    assert pairs["mib"] >= pairs["matrix_mib"]
    assert 0 < on_demand["mib"] < pairs["mib"] / 2
