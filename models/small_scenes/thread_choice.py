"""How many threads to compute with on a machine that others use too."""

from __future__ import annotations

import time

import torch

__all__ = ["ThreadChoice"]

_ROUND = 80  # steps from one trial to the next
_TRIAL = 3  # steps with each number of threads; the first of them warms up


class ThreadChoice:
    """Tries every number of threads now and then, and goes on with the fastest.

    Where another program holds a core, two threads that wait for each other at every operation
    are slower than one. Sums then differ in their last bits from one run to the next.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._starts: list[float] = []

    def next_step(self) -> None:
        """Set the number of threads for the step that begins."""
        if len(self._starts) == _ROUND:
            self._starts.clear()
        self._starts.append(time.perf_counter())
        trial = (len(self._starts) - 1) // _TRIAL
        if trial < self._most:
            torch.set_num_threads(trial + 1)
        elif len(self._starts) == self._most * _TRIAL + 1:
            torch.set_num_threads(min(range(1, self._most + 1), key=self._seconds))

    def _seconds(self, threads: int) -> float:
        """How long the later steps of the trial with ``threads`` took."""
        end = threads * _TRIAL
        return self._starts[end] - self._starts[end - _TRIAL + 1]
