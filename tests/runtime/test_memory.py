from __future__ import annotations

import os
import subprocess
import sys

import pytest

from divprune.runtime import memory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the system does not tell")

MIB = 2**20
PROGRAM = """
from divprune.runtime.memory import peak_rss
before = peak_rss()
block = b"x" * 2**26
during = peak_rss()
del block
print(before, during, peak_rss())
"""


def test_the_peak_grows_with_what_is_touched_and_stays():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    before, during, after = map(int, done.stdout.split())
    assert before < 64 * MIB  # what pytest itself has needed does not count
    assert before + 60 * MIB < during < before + 70 * MIB
    assert abs(after - during) < MIB


def test_without_proc_the_unit_is_bytes_too(monkeypatch, tmp_path):
    from_proc = memory.peak_rss()
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    # ru_maxrss outlives exec: it may be the peak of a large process that started this one.
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert from_proc / 4 < memory.peak_rss() < physical
