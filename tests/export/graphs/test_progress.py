"""Progress goes to stderr: bars with sizes on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys

import pytest

from divprune.export.graphs.progress import Progress

SHOW = """
from divprune.export.graphs.progress import Progress
with Progress().step("writing LLM graph", 4_000_000) as advance:
    advance(1_000_000)
    advance(3_000_000)
with Progress().step("checking", 3, unit="parts") as advance:
    for _ in range(3):
        advance(1)
"""


def test_without_a_terminal_a_step_is_one_log_line(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "divprune"), Progress().step("writing", 10) as advance:
        advance(10)
    assert caplog.messages == ["writing"]
    assert capfd.readouterr() == ("", "")


def test_bars_show_description_and_sizes_on_stderr_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Progress(bars=True).step("writing LLM graph", 4_000_000) as advance:
        advance(4_000_000)
    out, err = capfd.readouterr()
    assert out == ""
    assert "writing LLM graph" in err
    assert "4.0/4.0 MB" in err


def test_a_terminal_gets_bars_with_the_time_left() -> None:
    """A real pseudo-terminal: what isatty() and the library's own detection make of it."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        stderr=theirs,
        stdout=subprocess.PIPE,
        env=environment,
        check=True,
    )
    os.close(theirs)
    shown = b""
    while len(shown) < 1 << 20:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other end is closed: everything was read
            break
        shown += piece
        if not piece:
            break
    os.close(ours)
    assert done.stdout == b""
    for text in (b"writing LLM graph", b"4.0/4.0 MB", b"checking", b"3/3", b"0:00:00"):
        assert text in shown


def test_a_step_without_a_total_shows_the_time_it_takes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Progress(bars=True).step("tracing"):
        pass
    shown = capfd.readouterr().err
    assert "tracing" in shown
    assert "0:00:00" in shown
    assert "bytes" not in shown


def test_an_error_inside_a_step_passes_through_and_ends_the_bars(
    capfd: pytest.CaptureFixture[str],
) -> None:
    progress = Progress(bars=True)
    with pytest.raises(ValueError, match="stop"), progress.step("writing", 10):
        raise ValueError("stop")
    with progress.step("again", 0) as advance:  # only one display can be live at a time
        advance(0)
    assert "again" in capfd.readouterr().err
