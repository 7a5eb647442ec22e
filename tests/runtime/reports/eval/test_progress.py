from __future__ import annotations

import io

from divprune.runtime.reports.eval.progress import ProgressBar, describe_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_line_has_share_rate_time_left_and_failures():
    line = describe_progress("engine", 60, 240, 2, 30.0)
    assert line == "engine [######..................] 60/240 | 2.0/s | 1:30 left | 2 failed"
    assert "2:46:40 left" in describe_progress("engine", 1, 10_001, 0, 1.0)
    assert "? left" in describe_progress("engine", 0, 5, 0, 0.0)


def test_a_terminal_sees_the_bar_move_and_the_last_state():
    out = Terminal()
    bar = ProgressBar(2, "engine", out=out)
    bar.update(failed=False)
    bar.update(failed=True)
    bar.close()
    assert out.getvalue().count("\r") >= 2
    assert "2/2" in out.getvalue()
    assert out.getvalue().endswith("1 failed\n")


def test_a_file_gets_one_line_at_the_end_of_a_short_run():
    out = io.StringIO()
    bar = ProgressBar(3, "engine", out=out)
    for _ in range(3):
        bar.update(failed=False)
    bar.close()
    assert out.getvalue().count("\n") == 1
    assert "\r" not in out.getvalue()


def test_nothing_to_do_and_quiet_show_nothing():
    for total, quiet in ((0, False), (3, True)):
        out = Terminal()
        bar = ProgressBar(total, "engine", quiet=quiet, out=out)
        if total:
            bar.update(failed=False)
        bar.close()
        assert out.getvalue() == ""
