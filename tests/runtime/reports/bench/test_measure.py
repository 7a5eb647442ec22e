from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import pytest

from divprune.runtime.reports.bench.measure import Peaks, Sample, measure, turns


class Run:
    """Records its calls; the selection time of a sample is the number of the call."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[float] = []
        self.watched: list[float] = []
        self.watching = False
        self.stop_after = stop_after

    def __call__(self, keep: float) -> Sample:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(keep)
        if self.watching:
            self.watched.append(keep)
        return Sample(result=None, selection=float(len(self.calls)))

    @contextmanager
    def watch(self):
        self.watching = True
        yield lambda: Peaks(host=len(self.calls), device=None)
        self.watching = False


def times(samples):
    return [sample.selection for sample in samples]


def test_fractions_take_turns_and_every_round_begins_with_another_one():
    run = Run()
    measure(run, [0.1, 0.5, 1.0], warmup=1, iters=3, watch=run.watch)
    rounds = [run.calls[start : start + 3] for start in range(0, 12, 3)]
    assert rounds == [[0.1, 0.5, 1.0], [0.5, 1.0, 0.1], [1.0, 0.1, 0.5], [0.1, 0.5, 1.0]]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_fraction_always_follows_the_same_one(count):
    order = [keep for _, keep in turns(range(count), 2 * count)]
    before = {keep: Counter() for keep in range(count)}
    for first, second in pairwise(order):
        before[second][first] += 1
    assert all(len(predecessors) > 1 for predecessors in before.values())


def test_every_round_has_every_fraction_once():
    for number in range(7):
        assert sorted(keep for n, keep in turns("abc", 7) if n == number) == ["a", "b", "c"]


def test_warm_up_rounds_do_not_count():
    run = Run()
    measurement = measure(run, [0.1, 1.0], warmup=2, iters=3, watch=run.watch)
    assert len(run.calls) == 10
    # calls 1-4 are warm-up; 5 6, 8 7, 9 10 are the measured rounds
    assert times(measurement.samples[0.1]) == [5, 8, 9]
    assert times(measurement.samples[1.0]) == [6, 7, 10]
    assert not measurement.interrupted


def test_memory_is_watched_in_the_first_round_only():
    run = Run()
    measurement = measure(run, [0.1, 1.0], warmup=1, iters=3, watch=run.watch)
    assert run.watched == [0.1, 1.0]
    assert measurement.peaks == {0.1: Peaks(1, None), 1.0: Peaks(2, None)}


def test_ctrl_c_keeps_what_was_measured():
    run = Run(stop_after=5)
    measurement = measure(run, [0.1, 1.0], warmup=1, iters=3, watch=run.watch)
    assert measurement.interrupted
    assert times(measurement.samples[0.1]) == [4, 5]
    assert times(measurement.samples[1.0]) == [3]


def test_ctrl_c_during_the_warm_up_leaves_nothing():
    run = Run(stop_after=1)
    measurement = measure(run, [0.1, 1.0], warmup=1, iters=3, watch=run.watch)
    assert measurement.interrupted
    assert not any(measurement.samples.values())


def test_progress_is_shown_after_every_answer():
    run, seen = Run(), []

    def show(measurement):
        seen.append(sum(map(len, measurement.samples.values())))

    measure(run, [0.1, 1.0], warmup=1, iters=2, watch=run.watch, on_sample=show)
    assert seen == [0, 0, 1, 2, 3, 4]


def test_power_is_read_during_every_answer_that_counts_and_no_other():
    run = Run()

    @contextmanager
    def meter():
        before = len(run.calls)
        yield lambda: [float(len(run.calls)), float(len(run.calls) - before)]

    measurement = measure(run, [0.1, 1.0], warmup=1, iters=2, watch=run.watch, meter=meter)
    # calls 1 2 are warm-up; then 4 3 (1.0 began), 5 6; each context had one call in it
    assert measurement.watts == {0.1: [4, 1, 5, 1], 1.0: [3, 1, 6, 1]}


def test_without_a_meter_there_is_no_power():
    run = Run()
    assert measure(run, [1.0], warmup=0, iters=1, watch=run.watch).watts == {}
