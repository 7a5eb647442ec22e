"""Plugin for pytest: a skip whose reason is not in ``allowed_skips.txt`` fails the run.

``.ci/run`` loads it (``-p tests.skipped``); while working, skips are only listed.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed_skips.txt")

_unexpected: list[str] = []


def allowed_reasons(text: str) -> list[str]:
    """One reason a line, or the beginning of one; ``#`` opens a comment."""
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def is_allowed(reason: str, allowed: list[str]) -> bool:
    """Whether a reason, as pytest reports it, begins like one of those."""
    return reason.removeprefix("Skipped: ").startswith(tuple(allowed))


def _note(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple):
        path, line, reason = report.longrepr
        if not is_allowed(reason, allowed_reasons(ALLOWED.read_text(encoding="utf-8"))):
            _unexpected.append(f"{path}:{line}: {reason}")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not hasattr(report, "wasxfail"):
        _note(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note(report)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _unexpected and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _unexpected:
        terminalreporter.section(f"skipped, and not in tests/{ALLOWED.name}", red=True)
        for line in sorted(set(_unexpected)):
            terminalreporter.line(line)
