"""Several reports of the same work in one table, with ratios to the first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from divprune.runtime.directory.bounded_json import MAX_JSON_BYTES, read_bounded
from divprune.runtime.reports.bench.layout import format_keep, format_ms, stage_label
from divprune.runtime.reports.bench.report import STAGES, Report, ReportError, Run
from divprune.runtime.reports.tables import Table

__all__ = ["comparison", "read_report", "report_table", "require_same_work", "stage_comparison"]

_NONE = "-"
_PROMPT_LETTERS = 60


def read_report(path: Path) -> Report:
    """Read a report file.

    Raises:
        ReportError: if it cannot be read or is no report.
    """
    try:
        text = read_bounded(path, MAX_JSON_BYTES, error=ReportError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(
            f"{path} cannot be read", expected="a JSON report of divprune-bench", found=error
        ) from error
    return Report.from_json(text, str(path))


def require_same_work(reports: Sequence[Report], names: Sequence[str]) -> None:
    """Check that all reports measured the same thing; device, backend and dtype may differ.

    Raises:
        ReportError: naming everything that differs from the first report.
    """
    first = _work_facts(reports[0])
    for report, name in zip(reports[1:], names[1:], strict=True):
        other = _work_facts(report)
        unlike = [fact for fact in first if first[fact] != other[fact]]
        if unlike:
            raise ReportError(
                f"{name} measured other work than {names[0]}: {', '.join(unlike)}",
                expected=_describe(first, unlike),
                found=_describe(other, unlike),
                fix="run divprune-bench with the same engine, --keep, --image, --prompt,"
                " --prompt-tokens and --max-new-tokens",
            )


def report_table(reports: Sequence[Report]) -> Table:
    """One row for each report: where and with what it was measured."""
    header = ("", "device", "power, clocks", "backend", "weights", "threads", "rounds", "created")
    rows = tuple(
        (
            _letter(place),
            report.device.name + (", interrupted" if report.interrupted else ""),
            ", ".join(filter(None, (report.device.power_mode, report.device.clocks))) or _NONE,
            f"{report.engine.backend}, divprune-edge {report.tool.get('divprune-edge', _NONE)}",
            report.engine.quant or report.engine.dtype,
            _NONE if report.device.threads is None else str(report.device.threads),
            str(report.work.iters),
            report.created,
        )
        for place, report in enumerate(reports)
    )
    return Table(header, rows, labels=len(header))


def stage_comparison(reports: Sequence[Report]) -> Table:
    """Median times in ms and how many times faster than the first report each is."""
    letters = [_letter(place) for place in range(len(reports))]
    header = ["stage", "keep", letters[0]]
    for letter in letters[1:]:
        header += [letter, f"{letters[0]}/{letter}"]
    rows = []
    for entry in comparison(reports):
        first, *others = entry["p50_ms"]
        row = [stage_label(entry["stage"]), format_keep(entry["keep"]), format_ms(first)]
        for ms, speedup in zip(others, entry["speedup"][1:], strict=True):
            row += [format_ms(ms), _NONE if speedup is None else f"{speedup:.2f}"]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows), labels=2)


def comparison(reports: Sequence[Report]) -> list[dict[str, Any]]:
    """For each stage and fraction the medians of all reports, and the speed-ups over the first.

    Returns:
        Objects with ``stage``, ``keep``, ``p50_ms`` and ``speedup``: the last two have one
        entry a report, None where it has no such time.
    """
    entries = []
    for stage in STAGES:
        for runs in zip(*(report.runs for report in reports), strict=True):
            times = [_p50(run, stage) for run in runs]
            if any(ms is not None for ms in times):
                speedups = [times[0] / ms if ms and times[0] is not None else None for ms in times]
                keep = format_keep(runs[0].asked) if runs[0].auto else runs[0].keep
                entries.append({"stage": stage, "keep": keep, "p50_ms": times, "speedup": speedups})
    return entries


def _p50(run: Run, stage: str) -> float | None:
    stat = getattr(run.stages, stage)
    return None if stat is None else stat.p50


def _work_facts(report: Report) -> dict[str, object]:
    """Facts that have to be equal. Runs, not keeps asked for: interrupted reports have fewer."""
    engine, work = report.engine, report.work
    return {
        "model": engine.model,
        "revision": engine.revision,
        "selector": engine.selector,
        "visual tokens": engine.num_image_tokens,
        "picture": f"{work.image.width} x {work.image.height}, {work.image.sha256[:12]}",
        "prompt": work.prompt,
        "text tokens": work.text_tokens,
        "max new tokens": work.max_new_tokens,
        "ignore EOS": work.ignore_eos,
        "kept fractions": ", ".join(format_keep(run.asked) for run in report.runs),
        "kept tokens": ", ".join(str(run.num_kept) for run in report.runs),
    }


def _describe(facts: dict[str, object], names: Sequence[str]) -> str:
    return "; ".join(f"{name}: {_shorten(str(facts[name]))}" for name in names)


def _shorten(text: str) -> str:
    return text if len(text) <= _PROMPT_LETTERS else f"{text[:_PROMPT_LETTERS]}..."


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"#{place + 1}"
