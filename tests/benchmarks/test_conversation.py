from __future__ import annotations

import json

import pytest

pytest.importorskip("onnxruntime")

from benchmarks.conversation import main


def test_a_second_question_reads_fewer_rows_than_a_fresh_run_and_the_report_says_what_it_took(
    engine_dir, tmp_path
):
    output = tmp_path / "conversation.json"
    words = [str(engine_dir), "--rounds", "2", "--threads", "1", "--second", "why?"]
    assert main([*words, "--output", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["second_question"] == "why?"
    rows = report["prefilled"]
    assert rows["first"] < rows["anew"]
    assert rows["second"] < rows["anew"]
    assert report["rounds"] == 2
    assert report["second_over_first"]["low"] <= report["second_over_first"]["high"]
