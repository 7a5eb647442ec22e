"""From logs to a report: scores, differences to keep 1.0, times and arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends import choose_device
from divprune.runtime.reports.bench.device import core_count, cpu_name, tool_versions
from divprune.runtime.reports.eval.flops import (
    decoder_shape,
    mean_layer_tokens,
    paper_flops,
    prefill_macs,
)
from divprune.runtime.reports.eval.intervals import bootstrap, wilson
from divprune.runtime.reports.eval.metrics import Metric, get_metric
from divprune.runtime.reports.eval.report import (
    REPORT_VERSION,
    DataFacts,
    EvalReport,
    Interval,
    Row,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.reports.eval.dataset import Dataset, Sample
    from divprune.runtime.reports.eval.log import Record
    from divprune.runtime.reports.eval.plan import EngineRun, EvalOptions

    Records = Mapping[tuple[str, int], Record]

__all__ = ["assemble_report"]


def assemble_report(
    runs: Sequence[EngineRun],
    logs: Mapping[str, Records],
    dataset: Dataset,
    options: EvalOptions,
    notes: Sequence[str] = (),
) -> EvalReport:
    """Put what was answered so far into one report.

    Args:
        runs: What was planned.
        logs: Records by label of the run.
        dataset: The samples.
        options: As the answers were made.
        notes: What a reader should know.
    """
    scoring = _Scoring(dataset, get_metric(options.metric))
    rows = []
    device = choose_device(options.backend, runs[0].directory, options.device)
    for run in runs:
        baseline = _baseline_records(run, runs, logs)
        for keep, count in reversed(run.keeps):
            rows.append(_row(run, keep, count, logs[run.label], baseline, scoring))
    return EvalReport(
        report_version=REPORT_VERSION,
        tools=tool_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=f"{device} ({cpu_name()}, {core_count()} cores)",
        model=runs[0].directory.manifest.model.id,
        metric=options.metric,
        max_new_tokens=options.max_new_tokens,
        data=DataFacts(
            name=dataset.path.name,
            sha256=dataset.sha256,
            samples=len(dataset.samples),
            pictures=len({sample.image for sample in dataset.samples}),
        ),
        notes=tuple(notes),
        rows=tuple(rows),
    )


class _Scoring:
    """A metric over the samples of a data set."""

    def __init__(self, dataset: Dataset, metric: Metric) -> None:
        self.samples = dataset.samples
        self.metric = metric
        places = {image: i for i, image in enumerate(dict.fromkeys(s.image for s in self.samples))}
        self._picture = {sample.id: places[sample.image] for sample in self.samples}

    def counts(self, samples: Sequence[Sample], records: Sequence[Record]) -> NDArray[np.float64]:
        """Counts [samples, m] of answers."""
        pairs = zip(samples, records, strict=True)
        rows = [self.metric.count(record.text or "", sample.answers) for sample, record in pairs]
        return np.array(rows, np.float64)

    def by_picture(
        self, samples: Sequence[Sample], counts: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Counts [pictures, m], summed over the questions about each picture."""
        places = np.array([self._picture[sample.id] for sample in samples])
        _, places = np.unique(places, return_inverse=True)
        sums = np.zeros((int(places.max()) + 1, counts.shape[1]))
        np.add.at(sums, places, counts)
        return sums

    def score(self, samples: Sequence[Sample], counts: NDArray[np.float64]) -> Interval:
        """The metric's value with its interval."""
        if not samples:
            return Interval(0.0, 0.0, 1.0)
        total = counts.sum(axis=0)
        if self.metric.is_share:
            low, high = wilson(total[0], total[1])
        else:
            low, high = bootstrap(self.by_picture(samples, counts), self.metric.value)
        return Interval(float(self.metric.value(total)), low, high)

    def difference(
        self, samples: Sequence[Sample], base: NDArray[np.float64], counts: NDArray[np.float64]
    ) -> Interval | None:
        """Difference of the score of ``counts`` to that of ``base``, paired by question."""
        if not samples:
            return None
        width, value = base.shape[1], self.metric.value

        def above(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            return value(sums[..., width:]) - value(sums[..., :width])

        pictures = self.by_picture(samples, np.concatenate((base, counts), axis=1))
        return Interval(float(above(pictures.sum(axis=0))), *bootstrap(pictures, above))


def _baseline_records(
    run: EngineRun, runs: Sequence[EngineRun], logs: Mapping[str, Records]
) -> dict[str, Record]:
    """The answers at keep 1.0 that a run is compared with, by sample."""
    for other in runs:
        if other.label == run.baseline and other.keeps and other.keeps[-1][0] == 1.0:
            count = other.keeps[-1][1]
            return {
                sample: record
                for (sample, kept), record in logs[other.label].items()
                if kept == count and record.error is None
            }
    return {}


def _row(
    run: EngineRun,
    keep: float,
    count: int,
    records: Records,
    baseline: Mapping[str, Record],
    scoring: _Scoring,
) -> Row:
    tried = [(sample, records.get((sample.id, count))) for sample in scoring.samples]
    answered = [(sample, record) for sample, record in tried if record and record.error is None]
    samples, given = [sample for sample, _ in answered], [record for _, record in answered]
    counts = scoring.counts(samples, given)
    both = np.array([sample.id in baseline for sample in samples], bool)
    compared = [sample for sample in samples if sample.id in baseline]
    base = scoring.counts(compared, [baseline[sample.id] for sample in compared])
    manifest = run.directory.manifest
    selector, layer = manifest.selector, _layer(manifest)
    times = [record.times_ms.ttft for record in given if record.times_ms]
    text = np.array([record.text_tokens for record in given if record.text_tokens], np.float64)
    return Row(
        engine=run.label,
        selector=selector.name,
        layer=layer,
        keep=keep,
        num_kept=count,
        num_image_tokens=selector.num_image_tokens,
        layer_tokens=mean_layer_tokens(
            manifest.kv_cache.num_layers, selector.num_image_tokens, count, layer=layer or 0
        ),
        answers=len(given),
        errors=sum(record is not None and record.error is not None for _, record in tried),
        score=scoring.score(samples, counts),
        difference=scoring.difference(compared, base, counts[both]) if keep != 1.0 else None,
        categories=_categories(samples, counts, scoring.metric),
        ttft_ms=float(np.median(times)) if times else None,
        **_arithmetic(manifest, count, text),
    )


def _categories(
    samples: Sequence[Sample], counts: NDArray[np.float64], metric: Metric
) -> dict[str, float]:
    names = sorted({sample.category for sample in samples if sample.category is not None})
    values = {}
    for name in names:
        inside = np.array([sample.category == name for sample in samples])
        values[name] = float(metric.value(counts[inside].sum(axis=0)))
    return values


def _arithmetic(manifest: Manifest, count: int, text: NDArray[np.float64]) -> dict[str, float]:
    """Means over the answers: tokens around the picture, and what the prefill computes."""
    if not len(text):
        names = ("text_tokens", "paper_flops", "paper_ratio", "macs", "macs_ratio")
        return dict.fromkeys(names, 0.0)
    shape, selector = decoder_shape(manifest), manifest.selector
    layer = _layer(manifest) or 0
    whole, kept = text + selector.num_image_tokens, text + count
    sizes = (shape.num_layers, shape.hidden_size, shape.intermediate_size)
    flops = paper_flops(*sizes, whole, kept, layer=layer)
    macs = prefill_macs(shape, whole, kept, layer=layer)
    return {
        "text_tokens": float(text.mean()),
        "paper_flops": float(flops.mean()),
        "paper_ratio": float((flops / paper_flops(*sizes, whole)).mean()),
        "macs": float(macs.mean()),
        "macs_ratio": float((macs / prefill_macs(shape, whole)).mean()),
    }


def _layer(manifest: Manifest) -> int | None:
    selector = manifest.selector
    return int(selector.parameters["layer"]) if selector.inside_llm else None
