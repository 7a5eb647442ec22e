from __future__ import annotations

import json

import onnxruntime
import pytest

from benchmarks.operator_times import main


def test_every_graph_that_ran_has_its_operators_and_sessions_are_plain_again(engine_dir, tmp_path):
    plain = onnxruntime.InferenceSession
    output = tmp_path / "times.json"
    words = [str(engine_dir), "--runs", "2", "--new-tokens", "3", "--threads", "1"]
    assert main([*words, "--output", str(output)]) == 0
    assert onnxruntime.InferenceSession is plain
    report = json.loads(output.read_text())
    graphs = report["graphs"]
    assert graphs["vision/model.onnx"]["operators"]["Loop"]["calls"] == 1
    # One pass over the prompt and one for each token but the last.
    attention = graphs["llm/model.onnx"]["operators"]["GroupQueryAttention"]
    assert attention["calls"] % 3 == 0
    for graph in graphs.values():
        shown = [operator["ms"] for operator in graph["operators"].values()]
        assert shown == sorted(shown, reverse=True)
        assert graph["ms"] == pytest.approx(sum(shown), abs=0.01 * len(shown))


def test_a_directory_that_is_none_is_an_error_in_words(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "manifest.json" in capsys.readouterr().err
