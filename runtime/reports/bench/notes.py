"""Remarks of a report: what a reader of its numbers has to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from divprune.runtime.reports.bench.layout import format_keep

if TYPE_CHECKING:
    from divprune.runtime.reports.bench.measure import Measurement
    from divprune.runtime.reports.bench.report import DeviceFacts, Probe, Run
    from divprune.runtime.reports.bench.workload import BenchOptions

__all__ = ["roofline_notes", "steadiness_notes", "surrounding_notes"]

_BUSY = 0.5
_MORE_THAN_ALL = 1.05


def surrounding_notes(options: BenchOptions, device: DeviceFacts, probe: Probe | None) -> list[str]:
    """Notes on the circumstances of the measurement."""
    notes = []
    if device.load_average is not None and device.load_average > _BUSY * device.cores:
        notes.append(
            f"the machine was busy: load average {device.load_average:.1f} on {device.cores} cores"
        )
    if options.warmup == 0:
        notes.append("no warm-up: the first round is slower, and memory was watched during it")
    if options.residency == "sequential":
        notes.append(
            "one of vision and LLM in memory at a time (--residency sequential): the times of"
            " vision and prefill include loading them"
        )
    if options.device != "cpu":
        notes.append("no prediction: the probe measures the CPU")
    elif options.probe and probe is None:
        notes.append("no prediction: the probe of bandwidth and FLOP rate did not run")
    return notes


def steadiness_notes(measurement: Measurement) -> list[str]:
    """A note for every fraction whose answers were not the same in every round."""
    return [
        f"keep {format_keep(keep)}: the answers of different rounds differ"
        for keep, samples in measurement.samples.items()
        if len({sample.result.token_ids for sample in samples}) > 1
    ]


def roofline_notes(runs: Sequence[Run]) -> list[str]:
    """A note if a stage took less time than predicted to be possible."""
    shares = [prediction.achieved or 0 for run in runs for prediction in run.predicted.values()]
    if max(shares, default=0) <= _MORE_THAN_ALL:
        return []
    note = (
        "a stage beat its roofline: its data fit a cache, the probe was disturbed, or the backend "
        "multiplies matrices faster than NumPy, which the probe times"
    )
    return [note]
