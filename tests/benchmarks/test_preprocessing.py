"""Both revisions go through all pictures and models."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.preprocessing import ROOT, main


def test_every_step_is_timed_for_both_revisions(tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    words = ["--rounds", "2", "--models", "llava-1.5-7b", "qwen2.5-vl-3b"]
    words += ["--pictures", "64x48.jpg", "--old", str(ROOT), "--output", str(output)]
    assert main(words) == 0
    (steps,) = json.loads(output.read_text())["pictures"].values()
    prepared = {"prepare llava-1.5-7b", "prepare qwen2.5-vl-3b"}
    assert set(steps) == {"open", "again", "digest"} | prepared
    for step in steps.values():
        assert set(step) == {"old", "new", "new_over_old"}
        assert step["new"]["p10"] <= step["new"]["median"] <= step["new"]["p90"]
    assert all(steps[step][who]["median"] > 0 for step in prepared for who in ("old", "new"))
