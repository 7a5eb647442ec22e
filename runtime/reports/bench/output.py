"""Report files: the ending of the name chooses the form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from divprune.runtime.directory.safe_write import check_place, write_file
from divprune.runtime.errors import OptionError
from divprune.runtime.reports.bench.layout import render_csv, render_markdown
from divprune.runtime.reports.bench.report import Report

__all__ = ["FORMATS", "check_output", "write_report"]


_TEXT_FORMATS: dict[str, Callable[[Report], str]] = {
    ".json": Report.to_json,
    ".csv": render_csv,
    ".md": render_markdown,
}
_HTML = ".html"
FORMATS = (*_TEXT_FORMATS, _HTML)


def check_output(path: Path) -> None:
    """Refuse, before minutes of measuring, a file that could not be written after them.

    Raises:
        OptionError: for an ending that is no format, a directory, a folder that is missing,
            one that no file can be made in, and one that a model lies in.
    """
    if path.suffix.lower() not in FORMATS:
        raise OptionError(
            f"--output {path}: the ending names no format",
            expected=", ".join(FORMATS),
            found=path.suffix or "no ending",
        )
    check_place(path, "--output")


def write_report(
    report: Report, path: Path, draw: Callable[[], Mapping[str, bytes]] = dict
) -> None:
    """Write a report; a file that is there is replaced only by a complete one.

    Args:
        report: The report.
        path: Where to write it.
        draw: Makes the pictures of an HTML report, files by captions.

    Raises:
        OptionError: if it cannot be written.
    """
    content = _render(report, path.suffix.lower(), draw)
    write_file(path, content.encode(), "--output")


def _render(report: Report, ending: str, draw: Callable[[], Mapping[str, bytes]]) -> str:
    if ending != _HTML:
        return _TEXT_FORMATS[ending](report)
    from divprune.runtime.reports.bench.html_report import render_html

    return render_html(report.to_dict(), draw())
