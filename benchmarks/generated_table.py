"""The command line of the scripts that write a Markdown file from the reports beside it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from divprune.runtime.cli.main_guard import run_guarded

__all__ = ["RESULTS", "write_table"]

RESULTS = Path(__file__).parent / "results"


def write_table(
    script: str,
    description: str,
    name: str,
    render: Callable[[Path], str],
    argv: Sequence[str] | None,
) -> int:
    """Write the file, or with ``--check`` compare it with what the reports say.

    Args:
        script: Path of the script.
        description: Its docstring.
        name: Of the file it writes into the folder of the reports.
        render: The file's text for a folder of reports.
        argv: Arguments; None takes those of the process.

    Returns:
        The exit code: 1 if the file is out of date, 2 for a report that cannot be read.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--check", action="store_true", help="write nothing, compare only")
    arguments = parser.parse_args(argv)

    def run() -> int:
        path, text = arguments.folder / name, render(arguments.folder)
        if not arguments.check:
            path.write_text(text, encoding="utf-8")
            return 0
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return 0
        command = f"python benchmarks/{Path(script).name}"
        print(f"{path} is out of date: {command}", file=sys.stderr)
        return 1

    return run_guarded(run)
