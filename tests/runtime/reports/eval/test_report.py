"""What ``report.json`` says of rows that nothing was answered in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.runtime.reports.eval.example_report import example_report, example_row


@pytest.mark.parametrize("errors", [0, 7])
@pytest.mark.parametrize("selector", ["divprune", "random"])
@pytest.mark.parametrize("auto", [None, 0.8])
def test_what_was_not_answered_has_no_score_and_not_zero(errors, selector, auto):
    none = replace(
        example_row(selector, 0.1, 0, 0.0, 1.0),
        answers=0,
        errors=errors,
        auto=auto,
        difference=None,
        ttft_ms=None,
        categories={},
    )
    report = example_report(none, example_row("divprune", 0.25, 49, 0.0, 18.0))
    without, with_some = json.loads(report.to_json())["rows"]
    for name in ("score", "num_kept", "num_image_tokens", "text_tokens", "macs", "ttft_ms"):
        assert without[name] is None
    assert (without["answers"], without["errors"]) == (0, errors)
    assert with_some["score"]["value"] == 0.0  # all of them wrong is another thing
    assert with_some["num_kept"] == 49
