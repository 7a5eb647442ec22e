"""A report of no real measurement, with whole numbers that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from divprune.runtime.reports.bench.report import (
    Agreement,
    DeviceFacts,
    EngineFacts,
    ImageFacts,
    Prediction,
    Probe,
    Ratio,
    Report,
    Run,
    Stages,
    Stat,
    Work,
)


def stat(ms: float, n: int = 4) -> Stat:
    ms = float(ms)
    return Stat(n, ms, 1.0 if n > 1 else None, ms, ms + 1, ms + 2, ms - 1, ms + 2)


def made_up_run(keep: float, num_kept: int, prefill: float, **changes: Any) -> Run:
    prompt_tokens = 20 + num_kept
    baseline = keep == 1.0
    run = Run(
        keep=keep,
        num_kept=num_kept,
        prompt_tokens=prompt_tokens,
        new_tokens=8,
        finish_reason="length",
        kv_cache_bytes=2 * 2**20,
        live_kv_bytes=2**20,
        peak_host_bytes=3 * 2**30,
        peak_device_bytes=None,
        stages=Stages(
            preprocess=stat(10),
            vision=stat(200),
            selection=stat(5),
            merge=stat(1),
            prefill=stat(prefill),
            first_sample=stat(2),
            ttft=stat(213 + prefill),
            decode_per_token=stat(50, n=28),
        ),
        prefill_tokens_per_s=prompt_tokens * 1000 / prefill,
        decode_tokens_per_s=20.0,
        ratios={} if baseline else {"prefill": Ratio(4.0, 3.5, 4.5)},
        agreement=None if baseline else Agreement(3, False),
        text="a red square",
        kept_indices=tuple(range(num_kept)),
        predicted={"prefill": Prediction(prefill / 2, "compute", 0.5)},
    )
    return replace(run, **changes)


def made_up_report(**changes: Any) -> Report:
    """Keep 1.0 and 0.25 of 40 tokens; ``work__prompt="x"`` changes a field of a part."""
    report = Report(
        schema_version=1,
        tool={"divprune-edge": "0.1.0", "onnxruntime": "1.31.1"},
        created="2026-11-20T12:00:00+00:00",
        interrupted=False,
        notes=("the machine was busy",),
        device=DeviceFacts(
            name="Some Board",
            cpu="Some CPU",
            cores=4,
            threads=2,
            gpu=None,
            driver=None,
            power_mode="15W",
            clocks="CPU 1500 MHz",
            memory_bytes=8 * 2**30,
            os="Linux",
            load_average=0.25,
        ),
        engine=EngineFacts(
            model="some/model",
            revision=None,
            selector="divprune",
            target="onnxruntime",
            dtype="fp16",
            quant=None,
            backend="onnxruntime 1.31.1 (CPU)",
            max_seq_len=128,
            num_image_tokens=40,
        ),
        work=Work(
            image=ImageFacts("built-in", 640, 480, "ab" * 32),
            prompt="Describe the image.",
            text_tokens=20,
            max_new_tokens=8,
            ignore_eos=False,
            warmup=1,
            iters=4,
            keeps=(1.0, 0.25),
        ),
        runs=(made_up_run(1.0, 40, 800.0), made_up_run(0.25, 10, 200.0)),
        probe=Probe(10.0, 100.0),
    )
    for path, value in changes.items():
        part, _, field = path.partition("__")
        new = replace(getattr(report, part), **{field: value}) if field else value
        report = replace(report, **{part: new})
    return report
