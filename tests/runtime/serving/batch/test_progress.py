from __future__ import annotations

import io

import pytest

from divprune.runtime.serving.batch.progress import Progress, describe_duration


@pytest.mark.parametrize(
    "seconds,words",
    [
        (0, "0 s"),
        (89, "89 s"),
        (600, "10 min"),
        (3 * 3600 + 300, "3 h 05 min"),
        (10**6, "11 d 13 h"),
    ],
)
def test_durations_read_as_one_would_say_them(seconds: float, words: str) -> None:
    assert describe_duration(seconds) == words


def test_line_has_rate_time_left_and_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("divprune.runtime.serving.batch.progress.monotonic", lambda: now[0])
    stream = io.StringIO()
    progress = Progress(2000, 500, 0, stream)
    assert progress.describe() == "500 of 2,000, none failed"
    now[0] = 40.0
    progress.add(400, 3)
    assert stream.getvalue() == "900 of 2,000, 10.0 rows/s, 2 min left, 3 failed\n"
    now[0] = 80.0
    progress.add(1100, 0)
    progress.close()
    assert stream.getvalue().splitlines()[-1].startswith("2,000 of 2,000, ")
    assert "left" not in stream.getvalue().splitlines()[-1]


def test_nothing_is_said_without_a_stream() -> None:
    progress = Progress(1, stream=None)
    progress.add(1, 0)
    progress.close()
