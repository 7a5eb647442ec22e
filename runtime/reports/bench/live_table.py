"""The table of a running benchmark, drawn over itself on a terminal."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, TextIO

from divprune.runtime.reports.bench.assemble import assemble_runs
from divprune.runtime.reports.bench.layout import stage_table
from divprune.runtime.reports.tables import to_text

if TYPE_CHECKING:
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.reports.bench.measure import Measurement

__all__ = ["LiveTable"]

_UP_AND_CLEAR = "\x1b[{}F\x1b[J"


class LiveTable:
    """Redraws the table so far after every answer; nothing where there is no terminal.

    Drawing happens between two answers, outside every measured time.

    Args:
        rounds: Rounds in all, warm-up included.
        out: Where to draw.
    """

    def __init__(self, rounds: int, out: TextIO | None = None) -> None:
        self._rounds = rounds
        self._out = out or sys.stderr
        self._active = self._out.isatty()
        self._answers = 0
        self._lines = 0

    def update(self, measurement: Measurement, manifest: Manifest) -> None:
        """Draw what there is after one more answer."""
        self._answers += 1
        if not self._active:
            return
        total = self._rounds * len(measurement.samples)
        text = f"answer {self._answers} of {total}\n"
        if runs := assemble_runs(measurement, manifest):
            text += to_text(stage_table(runs))
        size = shutil.get_terminal_size()
        # A line that wraps or scrolls away would put the cursor in the wrong place.
        lines = [line[: size.columns - 1] for line in text.splitlines()[: size.lines - 1]]
        self._erase()
        self._out.write("".join(f"{line}\n" for line in lines))
        self._out.flush()
        self._lines = len(lines)

    def close(self) -> None:
        """Take the table away again; the final one follows on standard output."""
        if self._active:
            self._erase()
            self._out.flush()
        self._lines = 0

    def _erase(self) -> None:
        if self._lines:
            self._out.write(_UP_AND_CLEAR.format(self._lines))
