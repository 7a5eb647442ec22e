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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's MADV_PAGEOUT")
def test_pages_of_mapped_files_go_and_come_back(tmp_path):
    """In a folder of its own: files elsewhere keep their pages."""
    program = """
import mmap, os, re, sys
from pathlib import Path
from divprune.runtime.memory import page_out

def resident(path):
    for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if part.partition("\\n")[0].endswith(str(path)):
            return int(re.search(r"Rss:\\s+(\\d+)", part)[1])

folder, elsewhere = Path(sys.argv[1]) / "in", Path(sys.argv[1]) / "out"
maps = []
for place in (folder, elsewhere):
    place.mkdir()
    with (place / "weights").open("wb") as file:
        file.write(b"w" * 2**22)
        file.flush()
        os.fsync(file.fileno())  # only pages that are on the disk can go
    with (place / "weights").open("rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    assert maps[-1][:].count(b"w") == 2**22
before = resident(folder / "weights")
page_out(folder)
print(before, resident(folder / "weights"), resident(elsewhere / "weights"))
assert maps[0][:].count(b"w") == 2**22
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    before, after, elsewhere = map(int, done.stdout.split())
    assert before == elsewhere == 4096
    assert after < before / 2


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (15_400_000, "14.7 MiB"),
     (150 * MIB, "150 MiB"), (5 * 2**30, "5.0 GiB"), (2**41, "2,048 GiB")],
)  # fmt: skip
def test_sizes_are_in_the_largest_unit_that_they_fill(count, text):
    assert memory.format_bytes(count) == text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_blocks_between_small_ones_go_back_to_the_system_at_once():
    program = """
import ctypes, sys
from divprune.runtime.memory import free_blocks_at_once, rss
if sys.argv[1] == "at once":
    free_blocks_at_once()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def blocks(size):
    address = libc.malloc(size)
    ctypes.memset(address, 1, size)
    return address
libc.free(blocks(16 << 20))  # from here on glibc keeps blocks of this size in its heap
before = rss()
large = []
for _ in range(10):
    large.append(blocks(8 << 20))
    blocks(100_000)  # above it, and never freed
for address in large:
    libc.free(ctypes.c_void_p(address))
print(rss() - before)
"""
    left = {
        when: int(
            subprocess.run(
                [sys.executable, "-c", program, when], capture_output=True, text=True, check=True
            ).stdout
        )
        for when in ("by itself", "at once")
    }
    assert left["at once"] < 10 * MIB < 60 * MIB < left["by itself"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
@pytest.mark.parametrize("shared", [False, True])
def test_threads_share_the_heap_of_the_first_one(shared):
    program = """
import ctypes, sys, threading
from divprune.runtime.memory import share_one_heap
if sys.argv[1] == "True":
    share_one_heap()
libc, together = ctypes.CDLL(None), threading.Barrier(3)
def work():
    together.wait()
    libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(shared)], capture_output=True, text=True, check=True
    )
    assert (done.stderr.count("Arena ") == 1) == shared
