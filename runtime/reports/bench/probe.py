"""Measure this machine's memory bandwidth and float32 rate, in about two seconds.

The probe runs in a process of its own: BLAS reads its number of threads once, at the start,
and the arrays must not count as memory of the model.

- Bandwidth: the best of copying an array larger than every cache (read and written bytes
  count) and of only reading it, with one Python thread for each thread of the measurement;
  NumPy lets go of the interpreter lock meanwhile.
- FLOP rate: the best of several float32 matrix products; 2 n^3 operations each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import numpy as np

from divprune.runtime.reports.bench.device import core_count
from divprune.runtime.reports.bench.report import Probe

__all__ = ["measure_bandwidth", "measure_gflops", "probe_device"]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_ARRAY_BYTES = 192 * 2**20
_MATRIX = 1024
_SECONDS = 0.6
_TIMEOUT = 60


def probe_device(threads: int | None) -> Probe | None:
    """Measure bandwidth and FLOP rate with ``threads`` threads (None: one for each core).

    Returns:
        None if the probe could not run, for instance where memory is too short for it.
    """
    count = str(threads or core_count())
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, count)
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__, count],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=_TIMEOUT,
        )
        values = json.loads(done.stdout)
        return Probe(values["bandwidth_gb_s"], values["gflops"])
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def measure_bandwidth(threads: int, num_bytes: int = _ARRAY_BYTES) -> float:
    """Memory bandwidth in 1e9 bytes/s."""
    source = np.ones(num_bytes // 8)
    target = np.zeros_like(source)
    parts = list(zip(*(np.array_split(array, threads) for array in (source, target)), strict=True))
    with ThreadPoolExecutor(threads) as pool:
        copying = _best(lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)))
        reading = _best(lambda: list(pool.map(lambda part: np.max(part[0]), parts)))
    return max(2 * source.nbytes / copying, source.nbytes / reading) / 1e9


def measure_gflops(size: int = _MATRIX) -> float:
    """float32 rate in 1e9 operations/s."""
    left, right = (np.full((size, size), value, np.float32) for value in (0.5, 0.25))
    product = np.empty_like(left)
    return 2 * size**3 / _best(lambda: np.matmul(left, right, out=product)) / 1e9


def _best(work: Callable[[], object], seconds: float = _SECONDS) -> float:
    """Shortest of the times in seconds that fit into ``seconds``, after one that is not timed."""
    work()
    times: list[float] = []
    end = perf_counter() + seconds
    while not times or perf_counter() < end:
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    found = {
        "bandwidth_gb_s": measure_bandwidth(int(sys.argv[1])),
        "gflops": measure_gflops(),
    }
    sys.stdout.write(json.dumps(found))
