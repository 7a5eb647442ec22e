"""Steps, and prompts, recorded as CUDA graphs against those one by one: token ids and times."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_day.report import DEVICE, QUICK, ROOT, output, save
from benchmarks.gpu_day.runtime_steps import INT4, SMALL, _export, _random_checkpoint
from divprune.runtime.backends.onnxruntime.recorded import PROMPT_LENGTHS, Recorder

STEP = "recorded"
SHAPE = "llava-1.1b"
HOW = {
    "cuda": "recorded as CUDA graphs",
    "cpu": "no CUDA here: the same steps at fixed addresses, nothing recorded",
}


def recorded() -> None:
    engines = {
        "small fp16": _export(SMALL / "checkpoint", "small-fp16", keep=0.25),
        "small int4": _export(SMALL / "checkpoint", "small-int4", **INT4),
    }
    pictures = sorted((SMALL / "scenes").glob("*.png"))[: 1 if QUICK else 6]
    save(STEP, how=HOW[DEVICE])
    wrong = [name for name, engine in engines.items() if not _compare(name, engine, pictures)]
    if not QUICK:
        engine = _export(_random_checkpoint(SHAPE), f"random-{SHAPE}", keep=0.1)
        if not _compare(SHAPE, engine, [ROOT / "benchmarks" / "picture.jpg"] * 3):
            wrong.append(SHAPE)
    save(STEP, wrong=wrong)
    assert not wrong, wrong


def _compare(name: str, engine: Path, pictures: list[Path]) -> bool:
    """Whether the steps of the engine were recorded and gave the same token ids."""
    ways = {
        "one by one": _answers(engine, pictures, None),
        "together": _answers(engine, pictures, _recorder(())),
        "prompts too": _answers(engine, pictures, _recorder(PROMPT_LENGTHS)),
    }
    ids = list(zip(*(way.pop("ids") for way in ways.values()), strict=True))
    same = sum(one == other == third for one, other, third in ids)
    save(STEP, **{name: {"answers": len(ids), "same ids": same, **ways}})
    refused = [way for way in ways.values() if "not recorded" in str(way["backend"])]
    return same == len(ids) and not refused


def _answers(engine: Path, pictures: list[Path], recorder: Recorder | None) -> dict:
    from divprune.runtime import Pipeline
    from divprune.runtime.backends.onnxruntime.loading import load
    from divprune.runtime.directory.engine_directory import EngineDirectory

    directory = EngineDirectory.open(engine)
    backend = load(directory, device=DEVICE, threads=None, recorder=recorder)
    pipeline, ids, times, prefills = Pipeline(directory, backend), [], [], []
    for picture in pictures:
        for _ in range(2):  # the first one warms up
            pipeline.forget()
            result = pipeline.generate(
                str(picture), "Describe the image.", max_new_tokens=32, ignore_eos=True
            ).result
        ids.append(list(result.token_ids))
        times += result.timings.decode
        prefills.append(result.timings.prefill)
    row = {"backend": backend.name, "ids": ids, "ms_a_token": statistics.median(times)}
    row["prefill_ms"] = statistics.median(prefills)
    del pipeline, backend
    gc.collect()  # the weights of both do not have to fit at once
    return row


def _recorder(lengths: Sequence[int]) -> Recorder:
    if DEVICE == "cuda":
        return Recorder(lengths=lengths)
    from tests.plugins.emulator import EmulatedReductions

    folder = output() / "emulated_reductions"
    folder.mkdir(exist_ok=True)
    driver = EmulatedReductions(folder)
    return Recorder("cpu", lambda: driver, lengths)
