"""``divprune-compare``: several benchmark reports of the same work in one table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from divprune.runtime.cli.main_guard import (
    ToolParser,
    add_common_options,
    run_tool,
)

__all__ = ["main"]

_DESCRIPTION = """\
Compare reports of divprune-bench: several devices, backends or versions that did the same work.
Ratios say how many times faster a report is than the first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; the exit code is 0, 2 for what the user can mend, 1 for a bug."""
    return run_tool(_parser(), _run, argv)


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(prog="divprune-compare", description=_DESCRIPTION)
    add = parser.add_argument
    add("first", type=Path, metavar="A.json", help="the report that ratios refer to")
    add("others", type=Path, nargs="+", metavar="B.json", help="reports to compare with it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object instead")
    form.add_argument("--markdown", action="store_true", help="print Markdown tables")
    add_common_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from divprune.runtime.reports.bench.compare import (
        comparison,
        read_report,
        report_table,
        require_same_work,
        stage_comparison,
    )
    from divprune.runtime.reports.tables import to_markdown, to_text

    paths = [arguments.first, *arguments.others]
    names = [str(path) for path in paths]
    reports = [read_report(path) for path in paths]
    require_same_work(reports, names)
    if arguments.json:
        print(json.dumps({"reports": names, "stages": comparison(reports)}))
        return 0
    render = to_markdown if arguments.markdown else to_text
    print(render(report_table(reports)))
    print(render(stage_comparison(reports)), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
