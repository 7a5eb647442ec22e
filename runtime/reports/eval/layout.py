"""A report as tables for people."""

from __future__ import annotations

from divprune.runtime.reports.eval.metrics import get_metric
from divprune.runtime.reports.eval.report import EvalReport, Interval, Row
from divprune.runtime.reports.tables import Table, escape_markdown, to_markdown, to_text

__all__ = ["render_markdown", "render_text"]

_NONE = "-"


def render_text(report: EvalReport) -> str:
    """The report as a terminal shows it."""
    parts = ["\n".join(_headline(report)) + "\n", to_text(_score_table(report))]
    if categories := _category_table(report):
        parts.append(to_text(categories))
    parts += [to_text(_cost_table(report)), "".join(f"{line}\n" for line in _closing(report))]
    return "\n".join(parts)


def render_markdown(report: EvalReport, chart: str | None = None) -> str:
    """The report as Markdown; ``chart`` is the name of the picture beside it."""
    title = escape_markdown(f"{report.data.name} with {report.model}")
    parts = [
        f"# {title}\n",
        "".join(f"- {escape_markdown(line)}\n" for line in _headline(report)),
        to_markdown(_score_table(report)),
    ]
    if chart:
        parts.append(f"![{title}: score against tokens kept and time to first token]({chart})\n")
    if categories := _category_table(report):
        parts.append(to_markdown(categories))
    parts += [
        to_markdown(_cost_table(report)),
        "".join(f"- {escape_markdown(line)}\n" for line in _closing(report)),
    ]
    return "\n".join(parts)


def _headline(report: EvalReport) -> list[str]:
    data, metric = report.data, get_metric(report.metric)
    asked = f"{data.samples} questions about {data.pictures} pictures of {data.name}"
    return [
        f"{report.model} on {report.device}",
        f"{asked}, at most {report.max_new_tokens} new tokens",
        f"{metric.title} in %, with 95 % intervals",
    ]


def _score_table(report: EvalReport) -> Table:
    header = ("engine", "selector", "keep", "kept", get_metric(report.metric).title, "95 %")
    compared = ("change from keep 1.0", "95 %", "answers", "failed")
    return Table((*header, *compared), tuple(_score_row(row) for row in report.rows), labels=2)


def _score_row(row: Row) -> tuple[str, ...]:
    return (
        row.engine,
        row.method,
        row.asked,
        _kept(row) if row.answers else _NONE,
        f"{100 * row.score.value:.1f}" if row.answers else _NONE,
        _range(row.score, "{:.1f}") if row.answers else _NONE,
        f"{100 * row.difference.value:+.1f}" if row.difference else _NONE,
        _range(row.difference, "{:+.1f}") if row.difference else _NONE,
        str(row.answers),
        str(row.errors),
    )


def _kept(row: Row) -> str:
    """Means of one decimal, and between which the middle 80 % lie where pictures differ."""
    kept = f"{round(row.num_kept, 1):g} of {round(row.num_image_tokens, 1):g}"
    low, high = round(row.kept_low), round(row.kept_high)
    return kept if low == high else f"{kept} ({low} to {high})"


def _range(interval: Interval, form: str) -> str:
    return f"{form.format(100 * interval.low)} to {form.format(100 * interval.high)}"


def _category_table(report: EvalReport) -> Table | None:
    names = sorted({name for row in report.rows for name in row.categories})
    if not names:
        return None
    rows = tuple(
        (row.engine, row.asked, *(_percent(row.categories.get(name)) for name in names))
        for row in report.rows
    )
    return Table(("engine", "keep", *names), rows, labels=1)


def _percent(value: float | None) -> str:
    return _NONE if value is None else f"{100 * value:.1f}"


def _cost_table(report: EvalReport) -> Table:
    header = ("engine", "keep", "TTFT ms", "prompt rows", "visual tokens a layer")
    counted = ("GFLOP as in papers", "of keep 1.0", "giga multiply-adds", "of keep 1.0")
    rows = tuple(
        (
            row.engine,
            row.asked,
            _NONE if row.ttft_ms is None else f"{row.ttft_ms:.1f}",
            f"{row.text_tokens + row.num_kept:.1f}",
            f"{round(row.layer_tokens, 1):g}",
            f"{row.paper_flops / 1e9:.4g}",
            f"{100 * row.paper_ratio:.1f} %",
            f"{row.macs / 1e9:.4g}",
            f"{100 * row.macs_ratio:.1f} %",
        )
        for row in report.rows
    )
    return Table((*header, *counted), rows)


def _closing(report: EvalReport) -> list[str]:
    lines = list(report.notes) + [_gain(row) for row in report.rows if row.auto is not None]
    lines.append("both counts are of the language model's prefill: no vision tower, no selection")
    if report.errors:
        lines.append(f"{report.errors} answers failed and are in no score: see the logs")
    return lines


def _gain(row: Row) -> str:
    if row.gain is None:
        return f"{row.engine}, keep {row.asked}: no fractions on both sides of its mean to compare"
    value, spread = f"{100 * row.gain.value:+.1f}", _range(row.gain, "{:+.1f}")
    return (
        f"{row.engine}, keep {row.asked}: {value} points ({spread}) beside what fractions give at"
        f" its mean of {row.num_kept:.1f} tokens"
    )
