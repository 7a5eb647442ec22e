"""The result of the selector grid: one JSON and PNG a split, to which rows and times are added.

What was answered by other weights, or to other questions, is never put into the same file.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from divprune.export.selection import IN_LLM_SELECTORS, SELECTORS
from divprune.runtime.directory.manifest_json import FieldError, parse, read_dataclass
from divprune.runtime.errors import OptionError
from divprune.runtime.reports.eval.chart import draw_chart
from divprune.runtime.reports.eval.report import EvalReport

SPLITS = {"plain": "test", "hard": "hard"}


@dataclass(frozen=True, slots=True)
class PointTime:
    """Time to first token of one point of the grid, over the rounds.

    Medians, with what a tenth of the rounds was below and above. ``ratio`` is to keep 1.0 in the
    same round. ``keep`` is that with which its engine was exported; 0 is none.
    """

    selector: str
    layer: int | None
    keep: float
    ttft_ms: float
    ttft_low: float
    ttft_high: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True, slots=True)
class Timing:
    """A timing pass: where, when and how, and its points. ``load`` is the machine's at its start,
    the runnable processes of one minute."""

    created: str
    device: str
    tools: dict[str, str]
    threads: int
    load: float
    rounds: int
    pictures: int
    points: tuple[PointTime, ...]


@dataclass(frozen=True, slots=True)
class GridResult:
    """One split: ``weights`` is the key of the checkpoint, ``timing`` None until it was taken."""

    weights: str
    report: EvalReport
    timing: Timing | None = None


def result_path(folder, split):
    return folder / f"selector-grid-{split}.json"


def read_result(path: Path) -> GridResult | None:
    """The result in a file, None where there is none yet."""
    if not path.exists():
        return None
    try:
        return read_dataclass(GridResult, parse(path.read_text(encoding="utf-8")))
    except FieldError as error:
        raise OptionError(
            f"{path} is no result of this version of the grid",
            expected=f"{error.field or 'a JSON object'}: {error.expected}",
            found=error.found,
            fix="move it away to start over",
        ) from error


def check_same(path, result, weights, data_sha256, samples, max_new_tokens):
    """Refuse to go on with a result of something else."""
    report = result.report
    for what, expected, found in (
        ("weights", result.weights, weights),
        ("questions", report.data.sha256, data_sha256),
        ("number of questions", report.data.samples, samples),
        ("length limit", report.max_new_tokens, max_new_tokens),
    ):
        if expected != found:
            raise OptionError(
                f"{path} belongs to another grid: its {what} differ",
                expected=expected,
                found=found,
                fix="name another --output, or move the result away to start over",
            )


def merge_rows(path, old: GridResult | None, report: EvalReport) -> EvalReport:
    """The rows of both, in the registry's order; those of ``report`` replace older ones.

    Keep 1.0 has to come out as before: differences are to it, and it shows that both were
    answered alike.
    """
    if old is None:
        return report
    rows = {(row.engine, row.keep): row for row in old.report.rows}
    for row in report.rows:
        before = rows.get((row.engine, row.keep))
        if row.keep == 1.0 and before and before.score != row.score:
            raise OptionError(
                f"keep 1.0 does not answer as it did for {path}",
                expected=f"{before.score.value:.4f} right",
                found=f"{row.score.value:.4f}",
                fix="move the result away to answer all of it again",
            )
        rows[row.engine, row.keep] = row
    ordered = sorted(rows.values(), key=_place)
    notes = [*old.report.notes, *_other_circumstances(old.report, report)]
    return replace(old.report, rows=tuple(ordered), notes=tuple(dict.fromkeys(notes)))


def _place(row):
    names = [*SELECTORS, *IN_LLM_SELECTORS]
    known = names.index(row.selector) if row.selector in names else len(names)
    return row.keep != 1.0, known, row.selector, row.layer or 0, -row.keep


def _other_circumstances(old, new):
    """What a reader has to know about rows that were answered later."""
    labels = ", ".join(dict.fromkeys(row.engine for row in new.rows if row.keep != 1.0))
    if labels and (old.device, old.tools) != (new.device, new.tools):
        tools = ", ".join(f"{name} {version}" for name, version in sorted(new.tools.items()))
        yield f"{labels}: answered {new.created[:10]} on {new.device} with {tools}"


def with_times(report: EvalReport, timing: Timing | None) -> EvalReport:
    """Every row with its median of the timing pass, or with none."""
    points = timing.points if timing else ()
    medians = {(point.selector, point.layer, point.keep): point.ttft_ms for point in points}
    whole = next((point.ttft_ms for point in points if point.keep == 1.0), None)
    rows = []
    for row in report.rows:
        median = medians.get((row.selector, row.layer, row.keep))
        rows.append(replace(row, ttft_ms=whole if row.keep == 1.0 else median))
    return replace(report, rows=tuple(rows))


def write_result(path: Path, result: GridResult) -> EvalReport:
    """JSON and PNG; each replaces its predecessor when it is complete.

    Returns the report as written: its times are those of the timing pass, if there was one.
    """
    result = replace(result, report=with_times(result.report, result.timing))
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = dataclasses.asdict(result)
    _replace(path, (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode())
    if chart := draw_chart(result.report):
        _replace(path.with_suffix(".png"), chart)
    return result.report


def _replace(path, content):
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    partial.replace(path)
