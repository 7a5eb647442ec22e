from __future__ import annotations

import sys
import threading
import time
from itertools import count

import numpy as np
import pytest

from divprune.runtime.memory import rss
from divprune.runtime.reports.bench.measure import Peaks
from divprune.runtime.reports.bench.watch import polling, watch_memory, watch_power

MIB = 2**20

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@needs_proc
def test_a_peak_is_seen_that_is_over_when_it_is_asked_for():
    before = rss()
    with watch_memory() as peaks:
        # Large beside what threads of earlier tests in this process take meanwhile.
        block = np.ones(256 * MIB, np.uint8)
        time.sleep(0.05)
        del block
        after = rss()
        found = peaks()
    assert after < before + 128 * MIB
    assert found.host >= before + 240 * MIB
    assert found.device is None


def test_the_largest_reading_counts():
    readings = iter([3, 9, 4])
    with watch_memory(device=lambda: 7, host=lambda: next(readings, 1), seconds=0.001) as peaks:
        time.sleep(0.05)
        assert peaks() == Peaks(host=9, device=7)


def test_what_cannot_be_read_is_none():
    with watch_memory(host=lambda: None) as peaks:
        assert peaks() == Peaks(None, None)


def test_the_thread_ends_with_the_context():
    count = 0

    def read() -> int:
        nonlocal count
        count += 1
        return 1

    with pytest.raises(KeyboardInterrupt), watch_memory(host=read, seconds=0.001):
        raise KeyboardInterrupt
    seen = count
    time.sleep(0.02)
    assert count == seen


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


def test_it_calls_again_and_again_in_another_thread_and_then_no_more():
    threads: list[int] = []
    with polling(lambda: threads.append(threading.get_ident()), 0.001):
        deadline = time.monotonic() + 10
        while len(threads) < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
    seen = len(threads)
    assert seen >= 3
    assert threading.get_ident() not in threads
    time.sleep(0.02)
    assert len(threads) == seen


def test_the_end_does_not_wait_for_the_pause():
    start = time.monotonic()
    with polling(lambda: None, 60):
        pass
    assert time.monotonic() - start < 30
