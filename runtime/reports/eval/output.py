"""The folder of an evaluation: logs, report and picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from divprune.runtime.directory.safe_write import check_outside_models, write_file
from divprune.runtime.errors import OptionError
from divprune.runtime.reports.eval.chart import draw_chart
from divprune.runtime.reports.eval.layout import render_markdown

if TYPE_CHECKING:
    from divprune.runtime.reports.eval.report import EvalReport

__all__ = ["make_folder", "write_report"]

_CHART = "chart.png"
_REPORT = "report.json"


def make_folder(path: Path) -> None:
    """Make the folder if it is not there.

    Raises:
        OptionError: if it cannot be made or written to, or a model lies there.
    """
    check_outside_models(path / _REPORT, "--output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        writable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unwritable(path, error) from error
    if not writable:
        raise _unwritable(path, "no permission to write")


def write_report(report: EvalReport, folder: Path) -> list[Path]:
    """Write ``report.json``, ``report.md`` and, of two rows or more, ``chart.png``.

    Returns:
        The files; each replaces its predecessor only when it is complete.

    Raises:
        OptionError: if one cannot be written.
    """
    chart = draw_chart(report)
    contents = {_REPORT: report.to_json().encode()}
    if chart is not None:
        contents[_CHART] = chart
    markdown = render_markdown(report, None if chart is None else _CHART)
    contents["report.md"] = markdown.encode()
    for name, content in contents.items():
        write_file(folder / name, content, "--output")
    return [folder / name for name in contents]


def _unwritable(path: Path, found: object) -> OptionError:
    return OptionError(
        f"--output {path} cannot be written", expected="a folder to write to", found=found
    )
