"""What a comparison of two revisions says of their answers."""

from __future__ import annotations

from typing import Any

from benchmarks.revisions import STAGES, summarize


def answer(ms: float, tokens: list[int]) -> dict[str, Any]:
    times = dict.fromkeys(STAGES, ms)
    return {"timings_ms": times, "memory_bytes": {"peak_rss": 2**20}, "token_ids": tokens}


def test_ratios_are_those_of_each_round_and_other_tokens_are_noticed() -> None:
    rounds = [
        {(name, keep): answer(ms, [1, 2] if same else [1, int(ms)])
         for keep, same in (("1.0", True), ("0.1", False))
         for name, ms in (("old", old), ("new", new))}
        for old, new in ((100.0, 110.0), (200.0, 200.0), (100.0, 90.0))
    ]  # fmt: skip
    report = summarize(rounds)
    assert report["keep 1.0"]["ttft_ms"] == {
        "old": 100.0,
        "new": 110.0,
        "new_over_old": {"median": 1.0, "min": 0.9, "max": 1.1},
    }
    assert report["keep 1.0"]["same_tokens"]
    assert not report["keep 0.1"]["same_tokens"]
