"""The measurement itself: fractions kept take turns within one process.

A machine that warms up, throttles or gets busy changes over minutes. Measured one after the
other, one fraction would have the good minutes; taking turns within every round, all of them
see the same machine, and each round starts with another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TypeVar

from divprune.runtime.directory.keep import Keep
from divprune.runtime.generation.result import GenerationResult

__all__ = ["Measurement", "Meter", "Peaks", "Sample", "Watch", "measure", "turns"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Sample:
    """One answer; ``selection`` is the time of the selection in ms, where there was one."""

    result: GenerationResult
    selection: float | None


@dataclass(frozen=True)
class Peaks:
    """Largest memory in bytes seen while something ran; None where it cannot be told."""

    host: int | None
    device: int | None


# Makes a context that watches memory; what it gives tells the peaks so far.
Watch = Callable[[], AbstractContextManager[Callable[[], Peaks]]]

# Makes a context that watches power; what it gives tells the readings so far in watts.
Meter = Callable[[], AbstractContextManager[Callable[[], list[float]]]]


@dataclass
class Measurement:
    """Samples by fraction kept, warm-up excluded, and what the first run of each needed.

    The fractions ascend by the tokens they keep. ``watts`` are the readings of power during the
    samples; empty where it cannot be read.
    """

    samples: dict[Keep, list[Sample]]
    peaks: dict[Keep, Peaks] = field(default_factory=dict)
    watts: dict[Keep, list[float]] = field(default_factory=dict)
    interrupted: bool = False


def turns(keeps: Sequence[_T], rounds: int) -> Iterator[tuple[int, _T]]:
    """Round by round every one of ``keeps``; each round begins one place further on."""
    for number in range(rounds):
        start = number % len(keeps)
        for keep in (*keeps[start:], *keeps[:start]):
            yield number, keep


def measure(
    run: Callable[[Keep], Sample],
    keeps: Sequence[Keep],
    *,
    warmup: int,
    iters: int,
    watch: Watch,
    meter: Meter | None = None,
    on_sample: Callable[[Measurement], None] = lambda _: None,
) -> Measurement:
    """Run every fraction ``warmup + iters`` times in turns; the warm-up rounds do not count.

    Memory is watched in the first round only: the allocators keep what a larger fraction
    needed, so that later peaks say nothing about smaller ones, and no measured time has the
    watching in it. ``keeps`` should be ascending for that reason. Without a warm-up the first
    measured round is watched. Power is read during the rounds that count.

    Args:
        run: Answers once with a fraction kept, or a similarity to reach.
        keeps: Different ones, ascending by the tokens they keep.
        warmup: Rounds that are thrown away.
        iters: Rounds that count.
        watch: Makes a context that watches memory.
        meter: Makes a context that watches power; None where there is none to read.
        on_sample: Is shown the measurement after every answer, warm-up included.

    Returns:
        What was measured; after Ctrl-C what there was until then, marked as interrupted.
    """
    measurement = Measurement({keep: [] for keep in keeps})
    try:
        for number, keep in turns(keeps, warmup + iters):
            with ExitStack() as stack:
                peaks = stack.enter_context(watch()) if number == 0 else None
                watts = stack.enter_context(meter()) if meter and number >= warmup else None
                sample = run(keep)
                if peaks:
                    measurement.peaks[keep] = peaks()
                if watts:
                    measurement.watts.setdefault(keep, []).extend(watts())
            if number >= warmup:
                measurement.samples[keep].append(sample)
            on_sample(measurement)
    except KeyboardInterrupt:
        measurement.interrupted = True
    return measurement
