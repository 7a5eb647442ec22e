"""From samples to the rows of a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.reports.bench.report import STAGES, Agreement, Power, Ratio, Run, Stages
from divprune.runtime.reports.bench.statistics import agreement, describe, paired_ratio, rate

if TYPE_CHECKING:
    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.reports.bench.measure import Measurement, Sample

__all__ = ["assemble_runs", "stage_time"]


def assemble_runs(measurement: Measurement, manifest: Manifest) -> tuple[Run, ...]:
    """One row for each fraction or similarity that has a sample, the largest first."""
    return tuple(
        _assemble(keep, measurement, manifest)
        for keep in reversed(measurement.samples)
        if measurement.samples[keep]
    )


def stage_time(sample: Sample, stage: str) -> float | None:
    """Time of a stage in one sample in ms; decoding is the mean over its tokens."""
    if stage == "selection":
        return sample.selection
    time: float | None = getattr(sample.result.timings, stage)
    return time


def _assemble(keep: Keep, measurement: Measurement, manifest: Manifest) -> Run:
    samples = measurement.samples[keep]
    result = samples[0].result
    stages = _stages(samples)
    baseline = [] if keep == 1.0 else measurement.samples.get(1.0, [])
    # The selection is the same work whatever is kept of what it selected.
    compared = [stage for stage in STAGES if stage != "selection"]
    ratios = {stage: _ratio(baseline, samples, stage) for stage in compared}
    peaks = measurement.peaks.get(keep)
    decode = stages.decode_per_token
    slots = result.prompt_tokens + len(result.token_ids) - 1  # the last token is never fed
    image = result.images[0]
    return Run(
        keep=image.num_kept / image.num_image_tokens if isinstance(keep, AutoKeep) else keep,
        num_kept=image.num_kept,
        prompt_tokens=result.prompt_tokens,
        new_tokens=len(result.token_ids),
        finish_reason=result.finish_reason,
        kv_cache_bytes=result.memory.kv_cache,
        live_kv_bytes=manifest.live_kv_bytes(slots, image.num_image_tokens - image.num_kept),
        peak_host_bytes=peaks.host if peaks else None,
        peak_device_bytes=peaks.device if peaks else None,
        stages=stages,
        prefill_tokens_per_s=rate(result.prompt_tokens, stages.prefill.mean),
        decode_tokens_per_s=rate(1, decode.mean) if decode else None,
        ratios={stage: ratio for stage, ratio in ratios.items() if ratio is not None},
        agreement=_agreement(baseline, samples),
        text=result.text,
        kept_indices=image.kept_indices,
        predicted={},
        power=_power(measurement.watts.get(keep, []), samples),
        auto=keep.cover if isinstance(keep, AutoKeep) else None,
    )


def _stages(samples: Sequence[Sample]) -> Stages:
    times = {stage: [stage_time(sample, stage) for sample in samples] for stage in STAGES}
    times["decode_per_token"] = [ms for sample in samples for ms in sample.result.timings.decode]
    found = {stage: [ms for ms in values if ms is not None] for stage, values in times.items()}
    return Stages(**{stage: describe(values) for stage, values in found.items()})  # type: ignore[arg-type]


def _ratio(baseline: Sequence[Sample], samples: Sequence[Sample], stage: str) -> Ratio | None:
    return paired_ratio(
        [stage_time(sample, stage) for sample in baseline],
        [stage_time(sample, stage) for sample in samples],
    )


def _power(watts: Sequence[float], samples: Sequence[Sample]) -> Power | None:
    if not watts:
        return None
    mean = sum(watts) / len(watts)
    timings = [sample.result.timings for sample in samples]
    seconds = sum(timing.ttft + sum(timing.decode) for timing in timings) / len(timings) / 1000
    return Power(mean, max(watts), mean * seconds)


def _agreement(baseline: Sequence[Sample], samples: Sequence[Sample]) -> Agreement | None:
    if not baseline:
        return None
    first, other = baseline[0].result, samples[0].result
    return agreement(first.token_ids, other.token_ids, first.text, other.text)
