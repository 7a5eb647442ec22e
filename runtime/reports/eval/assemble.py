"""From logs to a report: scores, differences to keep 1.0, times and arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.backends import choose_device
from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.reports.bench.device import core_count, cpu_name, tool_versions
from divprune.runtime.reports.eval.flops import (
    decoder_shape,
    mean_layer_tokens,
    paper_flops,
    prefill_macs,
)
from divprune.runtime.reports.eval.log import keep_in_log
from divprune.runtime.reports.eval.metrics import get_metric
from divprune.runtime.reports.eval.report import REPORT_VERSION, DataFacts, EvalReport, Row
from divprune.runtime.reports.eval.scoring import Answers, Scoring

if TYPE_CHECKING:
    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.reports.eval.dataset import Dataset
    from divprune.runtime.reports.eval.log import Record
    from divprune.runtime.reports.eval.plan import EngineRun, EvalOptions

    Records = Mapping[tuple[str, float | str], Record]

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
    scoring = Scoring(dataset, get_metric(options.metric))
    rows: list[Row] = []
    device = choose_device(options.backend, runs[0].directory, options.device)
    for run in runs:
        baseline = _baseline_answers(run, runs, logs, scoring)
        rows += _run_rows(run, logs[run.label], baseline, scoring)
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


def _baseline_answers(
    run: EngineRun, runs: Sequence[EngineRun], logs: Mapping[str, Records], scoring: Scoring
) -> Answers:
    """The answers at keep 1.0 that a run is compared with."""
    for other in runs:
        if other.label == run.baseline:
            return scoring.answers(_of_keep(logs[other.label], 1.0))
    return scoring.answers({})


def _of_keep(records: Records, keep: Keep) -> dict[str, Record]:
    """The records of one fraction or similarity, by sample."""
    wanted = keep_in_log(keep)
    return {sample: record for (sample, kept), record in records.items() if kept == wanted}


def _run_rows(
    run: EngineRun, records: Records, baseline: Answers, scoring: Scoring
) -> Iterator[Row]:
    """The rows of an engine directory, those with most tokens first, similarities last."""
    fixed = [keep for keep in run.keeps if not isinstance(keep, AutoKeep)]
    fractions = [scoring.answers(_of_keep(records, keep)) for keep in fixed]
    if 1.0 not in fixed:
        fractions.append(baseline)
    autos = [keep for keep in run.keeps if isinstance(keep, AutoKeep)]
    rows: list[Keep] = [*reversed(fixed), *reversed(autos)]
    for keep in rows:
        tried = _of_keep(records, keep)
        answers = scoring.answers(tried)
        errors = sum(sample.id in tried for sample in scoring.samples) - len(answers)
        auto = keep.cover if isinstance(keep, AutoKeep) else None
        facts = _tokens(run.directory.manifest, answers)
        share = facts["num_kept"] / facts["num_image_tokens"] if len(answers) else 0.0
        times = [record.times_ms.ttft for record in answers.records if record.times_ms]
        yield Row(
            engine=run.label,
            selector=run.directory.manifest.selector.name,
            layer=_layer(run.directory.manifest),
            keep=share if isinstance(keep, AutoKeep) else keep,
            auto=auto,
            answers=len(answers),
            errors=errors,
            score=scoring.score(answers),
            difference=None if keep == 1.0 else scoring.difference(baseline, answers),
            gain=None if auto is None else scoring.gain(answers, fractions),
            categories=scoring.categories(answers),
            ttft_ms=float(np.median(times)) if times else None,
            **facts,
        )


_MEANS = (
    "num_kept", "kept_low", "kept_high", "num_image_tokens", "layer_tokens", "text_tokens",
    "paper_flops", "paper_ratio", "macs", "macs_ratio",
)  # fmt: skip


def _tokens(manifest: Manifest, answers: Answers) -> dict[str, float]:
    """Over the answers: tokens of pictures and around them, and what the prefill computes.

    Each picture counts with its own number of tokens.
    """
    if not answers:
        return dict.fromkeys(_MEANS, 0.0)
    total, kept = answers.numbers("num_image_tokens"), answers.numbers("num_kept")
    text = answers.numbers("text_tokens")
    shape, layer = decoder_shape(manifest), _layer(manifest) or 0
    seen = mean_layer_tokens(shape.num_layers, total, kept, layer=layer) if layer else kept
    sizes = (shape.num_layers, shape.hidden_size, shape.intermediate_size)
    flops = paper_flops(*sizes, text + total, text + kept, layer=layer)
    macs = prefill_macs(shape, text + total, text + kept, layer=layer)
    low, high = np.quantile(kept, (0.1, 0.9))
    values = (
        kept, low, high, total, seen, text,
        flops, flops / paper_flops(*sizes, text + total),
        macs, macs / prefill_macs(shape, text + total),
    )  # fmt: skip
    return {name: float(np.mean(value)) for name, value in zip(_MEANS, values, strict=True)}


def _layer(manifest: Manifest) -> int | None:
    selector = manifest.selector
    return int(selector.parameters["layer"]) if selector.inside_llm else None
