"""Decode steps recorded as CUDA graphs against steps one by one: token ids and times."""

from __future__ import annotations

import gc
import statistics
from pathlib import Path

from benchmarks.gpu_day.report import DEVICE, QUICK, ROOT, output, save
from benchmarks.gpu_day.runtime_steps import INT4, SMALL, _export, _random_checkpoint

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
    one_by_one = _answers(engine, pictures, together=False)
    together = _answers(engine, pictures, together=True)
    ids = list(zip(one_by_one.pop("ids"), together.pop("ids"), strict=True))
    same = sum(ours == theirs for ours, theirs in ids)
    row = {"answers": len(ids), "same ids": same, "one by one": one_by_one, "together": together}
    save(STEP, **{name: row})
    return same == len(ids) and "not recorded" not in str(together["backend"])


def _answers(engine: Path, pictures: list[Path], *, together: bool) -> dict:
    from divprune.runtime import Pipeline
    from divprune.runtime.backends.onnxruntime.loading import load
    from divprune.runtime.directory.engine_directory import EngineDirectory

    directory = EngineDirectory.open(engine)
    recorder = _recorder() if together else None
    backend = load(directory, device=DEVICE, threads=None, recorder=recorder)
    pipeline, ids, times = Pipeline(directory, backend), [], []
    for picture in pictures:
        for _ in range(2):  # the first one warms up
            pipeline.forget()
            result = pipeline.generate(
                str(picture), "Describe the image.", max_new_tokens=32, ignore_eos=True
            ).result
        ids.append(list(result.token_ids))
        times += result.timings.decode
    row = {"backend": backend.name, "ids": ids, "ms_a_token": statistics.median(times)}
    del pipeline, backend
    gc.collect()  # the weights of both do not have to fit at once
    return row


def _recorder():
    from divprune.runtime.backends.onnxruntime.recorded import Recorder

    if DEVICE == "cuda":
        return Recorder()
    from tests.plugins.emulator import EmulatedReductions

    folder = output() / "emulated_reductions"
    folder.mkdir(exist_ok=True)
    driver = EmulatedReductions(folder)
    return Recorder("cpu", lambda: driver)
