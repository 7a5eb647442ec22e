"""A whole benchmark: load, choose the work, measure in turns, describe the machine, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from divprune.runtime.backends import (
    choose_device,
    load_backend,
    load_selection,
)
from divprune.runtime.backends.cuda.nvml import open_nvml
from divprune.runtime.directory.keep import AutoKeep
from divprune.runtime.families import load_family
from divprune.runtime.pipeline import Pipeline
from divprune.runtime.reports.bench.assemble import assemble_runs
from divprune.runtime.reports.bench.device import device_facts, tool_versions
from divprune.runtime.reports.bench.measure import Measurement, Sample, measure
from divprune.runtime.reports.bench.notes import roofline_notes, steadiness_notes, surrounding_notes
from divprune.runtime.reports.bench.picture import image_facts
from divprune.runtime.reports.bench.prediction import predict
from divprune.runtime.reports.bench.probe import probe_device
from divprune.runtime.reports.bench.report import SCHEMA_VERSION, EngineFacts, Report, Work
from divprune.runtime.reports.bench.sensors import choose_sensors, open_jetson
from divprune.runtime.reports.bench.watch import watch_memory, watch_power
from divprune.runtime.reports.bench.workload import (
    BenchOptions,
    check_prompt_tokens,
    choose_keeps,
    common_limit,
    pad_prompt,
)

if TYPE_CHECKING:
    from PIL import Image

    from divprune.runtime.backends import Selection
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.directory.manifest import Manifest
    from divprune.runtime.reports.bench.report import Probe, Run

__all__ = ["Progress", "benchmark"]

# Is shown the measurement and the manifest after every answer.
Progress = Callable[[Measurement, "Manifest"], None]


def benchmark(
    directory: EngineDirectory,
    options: BenchOptions,
    image: Image.Image,
    source: str,
    progress: Progress = lambda *_: None,
) -> Report:
    """Measure an engine directory.

    Args:
        directory: An opened, verified engine directory.
        options: What to measure.
        image: The picture, decoded.
        source: Where it came from, for the report.
        progress: Is shown the measurement after every answer.

    Raises:
        OptionError: for a fraction that this directory cannot serve.
        PromptError: if the prompt does not fit with one of the fractions.
        BackendError: if the backend is missing, too old, or refuses the graphs.
        KeyboardInterrupt: if Ctrl-C came before the first answer that counts; later, what
            was measured until then is reported as interrupted.
    """
    manifest = directory.manifest
    options = replace(options, device=choose_device(options.backend, directory, options.device))
    num_image_tokens = load_family(directory).prepare_image(image).num_tokens
    keeps, notes = choose_keeps(manifest, options.keeps, num_image_tokens)
    gpu = options.device != "cpu"
    nvml = open_nvml() if gpu else None
    sensors = choose_sensors(nvml, open_jetson(), gpu=gpu)
    device = device_facts(options.threads, nvml)
    # Before the model is loaded: the probe needs some memory of its own for a moment.
    probe = probe_device(options.threads) if options.probe and not gpu else None
    pipeline, selection = _load(directory, options)
    if any(isinstance(keep, AutoKeep) for keep in keeps):
        cover = pipeline.encode_image(image).features.cover
        keeps, notes = choose_keeps(manifest, options.keeps, num_image_tokens, cover)
    work, more_notes = _define_work(pipeline, options, keeps, image, source, num_image_tokens)
    if selection is None and not manifest.selector.inside_llm:
        more_notes.append(
            "the selection is not timed on its own: no graph of this directory holds it alone and"
            " realised as the vision engine does it"
        )
    measurement = measure(
        _runner(pipeline, work, image, selection),
        keeps,
        warmup=work.warmup,
        iters=work.iters,
        watch=partial(watch_memory, sensors.device_memory),
        meter=partial(watch_power, sensors.power) if sensors.power else None,
        on_sample=lambda measured: progress(measured, manifest),
    )
    if not any(measurement.samples.values()):
        raise KeyboardInterrupt
    runs = _runs(measurement, manifest, image, probe, num_image_tokens)
    notes += more_notes + surrounding_notes(options, device, probe) + list(sensors.notes)
    notes += steadiness_notes(measurement) + roofline_notes(runs)
    return Report(
        schema_version=SCHEMA_VERSION,
        tool=tool_versions(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        interrupted=measurement.interrupted,
        notes=tuple(notes),
        device=device,
        engine=_engine_facts(manifest, pipeline.backend.name, num_image_tokens),
        work=work,
        runs=runs,
        probe=probe,
    )


def _load(directory: EngineDirectory, options: BenchOptions) -> tuple[Pipeline, Selection | None]:
    """The pipeline, and the selection of the vision graph alone where it has one."""
    name, device, threads = options.backend, options.device, options.threads
    residency = options.residency
    backend = load_backend(name, directory, device=device, threads=threads, residency=residency)
    pipeline = Pipeline(directory, backend)
    if directory.manifest.selector.inside_llm:
        return pipeline, None
    return pipeline, load_selection(name, directory, device=device, threads=threads)


def _define_work(
    pipeline: Pipeline,
    options: BenchOptions,
    keeps: tuple[Keep, ...],
    image: Image.Image,
    source: str,
    num_image_tokens: int,
) -> tuple[Work, list[str]]:
    prompt = options.prompt
    if options.prompt_tokens is not None:
        check_prompt_tokens(pipeline.manifest, options.prompt_tokens)
        prompt = pad_prompt(prompt, options.prompt_tokens, pipeline.count_text_tokens)
    text_tokens = pipeline.count_text_tokens(prompt)
    limit, notes = common_limit(
        pipeline.manifest, keeps, text_tokens, options.max_new_tokens, num_image_tokens
    )
    work = Work(
        image=image_facts(source, image),
        prompt=prompt,
        text_tokens=text_tokens,
        max_new_tokens=limit,
        ignore_eos=options.ignore_eos,
        warmup=options.warmup,
        iters=options.iters,
        keeps=tuple(str(k) if isinstance(k, AutoKeep) else k for k in reversed(keeps)),
    )
    return work, notes


def _runner(
    pipeline: Pipeline, work: Work, image: Image.Image, selection: Selection | None
) -> Callable[[Keep], Sample]:
    """A function that answers once; a selection of the vision graph is timed alone after it."""
    features = None if selection is None else pipeline.image_features(image)

    def run(keep: Keep) -> Sample:
        generation = pipeline.generate(
            image,
            work.prompt,
            keep=keep,
            max_new_tokens=work.max_new_tokens,
            ignore_eos=work.ignore_eos,
            reuse=False,
        )
        result = generation.result
        if selection is None or features is None:
            return Sample(result, result.timings.selection)
        start = perf_counter()
        selection(features)
        return Sample(result, (perf_counter() - start) * 1000)

    return run


def _runs(
    measurement: Measurement,
    manifest: Manifest,
    image: Image.Image,
    probe: Probe | None,
    num_image_tokens: int,
) -> tuple[Run, ...]:
    runs = assemble_runs(measurement, manifest)
    if probe is None:
        return runs
    num_bytes = image.width * image.height * len(image.getbands())
    return tuple(
        replace(run, predicted=predict(run, manifest, num_bytes, probe, num_image_tokens))
        for run in runs
    )


def _engine_facts(manifest: Manifest, backend: str, num_image_tokens: int) -> EngineFacts:
    return EngineFacts(
        model=manifest.model.id,
        revision=manifest.model.revision,
        selector=manifest.selector.name,
        target=manifest.target,
        dtype=manifest.dtype,
        quant=None if manifest.quant is None else manifest.quant.scheme,
        backend=backend,
        max_seq_len=manifest.max_seq_len,
        num_image_tokens=num_image_tokens,
    )
