from __future__ import annotations

import time
from itertools import count

from divprune.runtime.reports.bench.power_watch import watch_power


def test_readings_are_taken_until_they_are_asked_for():
    numbers = count()
    with watch_power(lambda: float(next(numbers)), seconds=0.005) as readings:
        deadline = time.monotonic() + 10
        while (found := readings())[-1] < 8 and time.monotonic() < deadline:
            time.sleep(0.005)
    assert found[-1] >= 8
    assert sorted(found) == list(range(len(found)))


def test_an_answer_shorter_than_the_pause_has_one_reading():
    calls: list[float] = []

    def read() -> float:
        calls.append(time.monotonic())
        return 5.0

    with watch_power(read, seconds=60) as readings:
        assert calls == []  # nothing is read while the answer begins
        assert readings() == [5.0]
    assert len(calls) == 1


def test_readings_that_fail_are_left_out():
    with watch_power(lambda: None, seconds=60) as readings:
        assert readings() == []
