"""Questions through the engines, each answer into the log before the next is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.directory.manifest import MANIFEST_NAME
from divprune.runtime.errors import ImageError, NumericalError, PromptError
from divprune.runtime.reports.eval.log import Record, SampleLog, Times, keep_in_log

if TYPE_CHECKING:
    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.generation.result import GenerationResult
    from divprune.runtime.pipeline import Pipeline
    from divprune.runtime.reports.eval.dataset import Dataset, Sample
    from divprune.runtime.reports.eval.plan import EngineRun, EvalOptions

__all__ = ["OF_ONE_SAMPLE", "evaluate_run", "log_header", "open_log", "to_do"]

OF_ONE_SAMPLE = (ImageError, PromptError, NumericalError)
"""Errors that say something about one picture or question, not about all that follow."""


def log_header(run: EngineRun, dataset: Dataset, options: EvalOptions) -> dict[str, Any]:
    """Everything that answers depend on; a log is continued only by a run with equal values."""
    from divprune.runtime.backends import choose_device

    manifest = run.directory.manifest
    content = (run.directory.path / MANIFEST_NAME).read_bytes()
    return {
        "engine": run.label,
        "selector": manifest.selector.name,
        "model": manifest.model.id,
        "manifest_sha256": hashlib.sha256(content).hexdigest(),
        "data_sha256": dataset.sha256,
        "backend": options.backend or f"that of target {manifest.target}",
        "device": choose_device(options.backend, run.directory, options.device),
        "max_new_tokens": options.max_new_tokens,
    }


def open_log(
    folder: Path, run: EngineRun, dataset: Dataset, options: EvalOptions, *, restart: bool = False
) -> SampleLog:
    """The log of a run, ``<label>.jsonl`` in ``folder``; errors are those of ``SampleLog``."""
    header = log_header(run, dataset, options)
    return SampleLog(folder / f"{run.label}.jsonl", header, restart=restart)


def to_do(run: EngineRun, dataset: Dataset, log: SampleLog) -> int:
    """Number of answers still missing from the log."""
    return sum(len(_missing(run, sample, log)) for sample in dataset.samples)


def evaluate_run(
    run: EngineRun,
    dataset: Dataset,
    options: EvalOptions,
    log: SampleLog,
    on_answer: Callable[[Record], None] = lambda _: None,
) -> None:
    """Ask what the log does not have yet.

    A picture goes through the vision graph once for all its questions and fractions. What goes
    wrong with one sample is logged as its error; what would go wrong with all of them is raised.

    Raises:
        DivPruneError: if the engine directory cannot be loaded or its backend gives up.
    """
    if not to_do(run, dataset, log):
        return
    from divprune.runtime.backends import load_backend
    from divprune.runtime.pipeline import Pipeline

    backend = load_backend(
        options.backend, run.directory, device=options.device, threads=options.threads
    )
    pipeline = Pipeline(run.directory, backend)
    for image, samples in _by_image(dataset.samples):
        work = [(sample, missing) for sample in samples if (missing := _missing(run, sample, log))]
        if not work:
            continue
        for record in _ask_about(pipeline, image, work, options.max_new_tokens):
            log.append(record)
            on_answer(record)


def _by_image(samples: Sequence[Sample]) -> Iterator[tuple[str, list[Sample]]]:
    """Samples of one picture together, pictures in the order in which they come up."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.image, []).append(sample)
    yield from groups.items()


def _missing(run: EngineRun, sample: Sample, log: SampleLog) -> list[Keep]:
    return [keep for keep in run.keeps if not log.has_answer(sample.id, keep_in_log(keep))]


def _ask_about(
    pipeline: Pipeline,
    image: str,
    work: Sequence[tuple[Sample, Sequence[Keep]]],
    max_new_tokens: int,
) -> Iterator[Record]:
    try:
        encoded = pipeline.encode_image(image)
    except OF_ONE_SAMPLE as error:
        for sample, keeps in work:
            yield from (_failure(sample, keep, error) for keep in keeps)
        return
    inside_llm = pipeline.manifest.selector.inside_llm
    for sample, keeps in work:
        for keep in keeps:
            try:
                result = pipeline.generate(
                    encoded,
                    sample.question,
                    keep=keep,
                    max_new_tokens=max_new_tokens,
                    reuse=False,
                ).result
                yield _answer(result, sample, keep, inside_llm=inside_llm)
            except OF_ONE_SAMPLE as error:
                yield _failure(sample, keep, error)


def _answer(result: GenerationResult, sample: Sample, keep: Keep, *, inside_llm: bool) -> Record:
    times, (image,) = result.timings.to_dict(), result.images
    visual = image.num_image_tokens if inside_llm else image.num_kept
    return Record(
        id=sample.id,
        keep=keep_in_log(keep),
        num_image_tokens=image.num_image_tokens,
        num_kept=image.num_kept,
        text=result.text,
        text_tokens=result.prompt_tokens - visual,
        prompt_tokens=result.prompt_tokens,
        new_tokens=len(result.token_ids),
        finish_reason=result.finish_reason,
        times_ms=Times(
            vision=times["vision"] or 0.0,
            prefill=times["prefill"] or 0.0,
            ttft=times["ttft"] or 0.0,
            decode_per_token=times["decode_per_token"],
        ),
    )


def _failure(sample: Sample, keep: Keep, error: Exception) -> Record:
    return Record(id=sample.id, keep=keep_in_log(keep), error=str(error))
