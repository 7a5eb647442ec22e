"""How far an evaluation is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import shutil
import sys
from time import monotonic
from typing import TextIO

__all__ = ["ProgressBar", "describe_progress"]

_REDRAW_S = 0.1
_LINE_S = 60.0
_BAR = 24


class ProgressBar:
    """Counts answers on stderr, with rate and time left.

    Args:
        total: Answers to make in this run.
        label: What is being answered.
        quiet: Show nothing.
        out: Where to draw.
    """

    def __init__(
        self, total: int, label: str, *, quiet: bool = False, out: TextIO | None = None
    ) -> None:
        self._total = total
        self._label = label
        self._out = out or sys.stderr
        self._active = not quiet and total > 0
        self._terminal = self._out.isatty()
        self._done = self._errors = 0
        self._start = monotonic()
        self._drawn = self._start if not self._terminal else float("-inf")

    def update(self, *, failed: bool) -> None:
        """Count one answer, or one failure."""
        self._done += 1
        self._errors += failed
        now = monotonic()
        if now - self._drawn >= (_REDRAW_S if self._terminal else _LINE_S):
            self._drawn = now
            self._draw()

    def close(self) -> None:
        """Show the last state and leave the line."""
        self._draw()
        if self._active and self._terminal:
            self._out.write("\n")

    def _draw(self) -> None:
        if not self._active:
            return
        seconds = monotonic() - self._start
        text = describe_progress(self._label, self._done, self._total, self._errors, seconds)
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            self._out.write(f"\r\x1b[K{text[:width]}")
        else:
            self._out.write(f"{text}\n")
        self._out.flush()


def describe_progress(label: str, done: int, total: int, errors: int, seconds: float) -> str:
    """One line: bar, answers, rate, time left and errors."""
    filled = _BAR * done // total
    rate = done / seconds if seconds > 0 else 0.0
    left = _clock((total - done) / rate) if rate else "?"
    failed = f" | {errors} failed" if errors else ""
    bar = "#" * filled + "." * (_BAR - filled)
    return f"{label} [{bar}] {done}/{total} | {rate:.1f}/s | {left} left{failed}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
