"""One line about a long run: how far it is, how fast, how long it will take, what failed."""

from __future__ import annotations

import sys
from collections import deque
from time import monotonic
from typing import TextIO

__all__ = ["Progress", "describe_duration"]

_WINDOW_S = 60.0
_TERMINAL_S = 0.5
_LOG_S = 30.0


class Progress:
    """Writes to a terminal's last line, or now and then to a log.

    Args:
        total: Rows in all.
        done: Rows that an earlier run has done.
        failed: How many of these are errors.
        stream: Where to; None says nothing.
    """

    def __init__(
        self, total: int, done: int = 0, failed: int = 0, stream: TextIO | None = sys.stderr
    ) -> None:
        self._total, self.done, self.failed = total, done, failed
        self._stream = stream
        self._live = stream is not None and stream.isatty()
        self._history: deque[tuple[float, int]] = deque([(monotonic(), done)])
        self._shown = monotonic()

    def add(self, answered: int, failed: int) -> None:
        """Count rows."""
        self.done += answered
        self.failed += failed
        now = monotonic()
        self._history.append((now, self.done))
        while len(self._history) > 2 and now - self._history[0][0] > _WINDOW_S:
            self._history.popleft()
        if now - self._shown >= (_TERMINAL_S if self._live else _LOG_S):
            self._shown = now
            self._write("\r" if self._live else "", "\x1b[K" if self._live else "\n")

    def close(self) -> None:
        """The last line."""
        self._write("\r" if self._live else "", "\x1b[K\n" if self._live else "\n")

    def describe(self) -> str:
        """The line."""
        parts = [f"{self.done:,} of {self._total:,}"]
        (start, first), (end, last) = self._history[0], self._history[-1]
        if last > first and end > start:
            rate = (last - first) / (end - start)
            parts.append(f"{rate:.1f} rows/s" if rate >= 1 else f"{1 / rate:.1f} s a row")
            if left := self._total - self.done:
                parts.append(f"{describe_duration(left / rate)} left")
        parts.append(f"{self.failed:,} failed" if self.failed else "none failed")
        return ", ".join(parts)

    def _write(self, before: str, after: str) -> None:
        if self._stream is not None:
            self._stream.write(f"{before}{self.describe()}{after}")
            self._stream.flush()


def describe_duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``, ``4 d 2 h``."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
