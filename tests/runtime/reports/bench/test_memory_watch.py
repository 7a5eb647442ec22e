from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from divprune.runtime.memory import rss
from divprune.runtime.reports.bench.measure import Peaks
from divprune.runtime.reports.bench.memory_watch import watch_memory

MIB = 2**20

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


@needs_proc
def test_a_peak_is_seen_that_is_over_when_it_is_asked_for():
    before = rss()
    with watch_memory() as peaks:
        block = np.ones(64 * MIB, np.uint8)
        time.sleep(0.05)
        del block
        after = rss()
        found = peaks()
    assert after < before + 32 * MIB
    assert found.host >= before + 60 * MIB
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
