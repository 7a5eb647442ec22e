"""Progress on stderr: bars with sizes and time left on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Advance", "Progress"]

logger = logging.getLogger(__name__)

Advance = Callable[[int], None]


class Progress:
    """Shows the steps of an export one after the other."""

    def __init__(self, *, bars: bool | None = None) -> None:
        self._bars = sys.stderr.isatty() if bars is None else bars

    @contextmanager
    def step(
        self, description: str, total: int | None = None, *, unit: str = "bytes"
    ) -> Iterator[Advance]:
        """A step of ``total`` bytes or ``unit``; call the yielded function with each advance.

        Without a total the bar only shows that something is going on, and for how long.
        """
        logger.info("%s", description)
        if not self._bars:
            yield _ignore
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        columns = [TextColumn("{task.description:<30}"), BarColumn()]
        columns += [TimeElapsedColumn()] if total is None else [amount, TimeRemainingColumn()]
        with Bars(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(description, total=total)
            yield lambda advance: bars.update(task, advance=advance)


def _ignore(advance: int) -> None:
    """Nothing to draw on."""
