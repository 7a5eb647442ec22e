"""Reports that nobody measured, to see what becomes of them."""

from __future__ import annotations

from divprune.runtime.reports.eval.flops import mean_layer_tokens
from divprune.runtime.reports.eval.report import (
    REPORT_VERSION,
    DataFacts,
    EvalReport,
    Interval,
    Row,
)

__all__ = ["example_report", "example_row"]


def example_row(
    selector: str,
    keep: float,
    num_kept: int,
    score: float,
    ttft: float,
    *,
    layer: int | None = None,
) -> Row:
    """Of a model with 196 visual tokens and four layers."""
    return Row(
        engine=f"{selector}-engine",
        selector=selector,
        layer=layer,
        keep=keep,
        auto=None,
        num_kept=num_kept,
        kept_low=num_kept,
        kept_high=num_kept,
        num_image_tokens=196,
        layer_tokens=mean_layer_tokens(4, 196, num_kept, layer=layer or 0),
        answers=200,
        errors=0,
        score=Interval(score, score - 0.05, score + 0.04),
        difference=None if keep == 1.0 else Interval(score - 0.95, score - 1.0, score - 0.9),
        gain=None,
        categories={"colour": score, "count": score / 2},
        ttft_ms=ttft,
        text_tokens=11.5,
        paper_flops=2e9 * keep,
        paper_ratio=keep,
        macs=1e9 * keep,
        macs_ratio=keep,
    )


def example_report(*rows: Row, notes: tuple[str, ...] = ()) -> EvalReport:
    return EvalReport(
        report_version=REPORT_VERSION,
        tools={"divprune-edge": "0.1.0"},
        created="2026-01-01T00:00:00+00:00",
        device="cpu (some processor, 2 cores)",
        model="some/model",
        metric="exact-match",
        max_new_tokens=64,
        data=DataFacts("data.jsonl", "0" * 64, 200, 20),
        notes=notes,
        rows=rows
        or (
            example_row("divprune", 1.0, 196, 0.95, 30.0),
            example_row("divprune", 0.25, 49, 0.88, 18.0),
            example_row("divprune", 0.1, 20, 0.76, 16.0),
            example_row("random", 0.25, 49, 0.6, 17.0),
            example_row("random", 0.1, 20, 0.41, 15.0),
        ),
    )
