from __future__ import annotations

import subprocess

import pytest

from divprune.runtime.reports.bench import probe


def test_a_small_array_and_a_small_matrix_give_plausible_rates(monkeypatch):
    monkeypatch.setattr(probe._best, "__defaults__", (0.02,))
    assert 0.01 < probe.measure_bandwidth(2, num_bytes=2**20) < 10_000
    assert 0.01 < probe.measure_gflops(64) < 100_000


def test_the_probe_runs_in_a_process_of_its_own():
    found = probe.probe_device(1)
    assert 0.1 < found.bandwidth_gb_s < 10_000
    assert 0.1 < found.gflops < 100_000


@pytest.mark.parametrize(
    "error", [OSError(12, "no memory"), subprocess.CalledProcessError(1, "python")]
)
def test_a_probe_that_cannot_run_gives_none(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert probe.probe_device(None) is None


def test_the_probe_is_told_how_many_threads(monkeypatch):
    calls = []

    def record(command, **options):
        calls.append((command[-1], options["env"]["OPENBLAS_NUM_THREADS"]))
        return subprocess.CompletedProcess(command, 0, '{"bandwidth_gb_s": 1.0, "gflops": 2.0}')

    monkeypatch.setattr(subprocess, "run", record)
    assert probe.probe_device(3).gflops == 2.0
    assert calls == [("3", "3")]
