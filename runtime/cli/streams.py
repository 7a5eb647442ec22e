"""Standard streams as the world has them: closed, full, or of an encoding of few letters."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["discard_stdout", "prepare_streams"]


def prepare_streams() -> None:
    """Make the standard streams usable whatever they are.

    A closed one leads nowhere: otherwise the next file that is opened would take its number, and
    what a library prints would be written into it. Standard error never fails, as nothing could
    be said about it. What an encoding lacks is escaped, and what standard input holds beside its
    encoding is read as half characters, which whoever takes the text refuses by name.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None or sys.stderr is sys.__stderr__:
        encoding = "utf-8" if sys.stderr is None else sys.stderr.encoding
        raw: Any = io.BufferedWriter(_Forgiving(2, "wb", closefd=False))
        sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def discard_stdout() -> None:
    """Let standard output lead nowhere: Python flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Forgiving(io.FileIO):
    """A file that takes everything, written or not."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)
