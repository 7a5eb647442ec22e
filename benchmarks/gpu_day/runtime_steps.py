"""ONNX Runtime through the product's own pipeline: answers, int4's distance, times."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_day.report import DEVICE, QUICK, ROOT, save

WORK = Path(tempfile.gettempdir()) / "gpu_day_work"
SMALL = ROOT / "models" / "small_scenes"
BOTH = ("cpu", "cuda") if DEVICE == "cuda" else ("cpu",)
TOKENS = 12
INT4 = {"keep": 0.25, "quant": "int4"}


def ort_small() -> None:
    """The shipped small model: do token ids on the device equal those on the CPU?"""
    import onnxruntime

    save("ort_small", version=onnxruntime.__version__)
    for name, options in (("fp16", {"keep": 0.25}), ("int4", INT4)):
        engine = _export(SMALL / "checkpoint", f"small-{name}", **options)
        answers = {}
        for where in BOTH:
            try:
                answers[where] = _small_answers(engine, where)
            except Exception as error:  # what is reported is what is wrong with our own code
                save("ort_small", **{f"{name} on {where}": repr(error)[:900]})
        times = {
            where: [{k: v for k, v in row.items() if k not in ("ids", "kept")} for row in rows]
            for where, rows in answers.items()
        }
        save("ort_small", **{name: times})
        if len(answers) == 2:
            pairs = zip(*answers.values(), strict=True)
            same = [
                (a["ids"] == b["ids"], len(set(a["kept"]) & set(b["kept"])), len(a["kept"]))
                for a, b in pairs
            ]
            save("ort_small", **{f"{name} same ids, kept in common, kept": same})


def _small_answers(engine: Path, where: str) -> list[dict]:
    from divprune.runtime import Pipeline

    pipeline, rows = Pipeline.from_dir(engine, device=where), []
    for picture in sorted((SMALL / "scenes").glob("*.png"))[: 1 if QUICK else 3]:
        for keep in (0.25, 1.0):
            for _ in range(3):
                pipeline.forget()
                result = pipeline.generate(
                    str(picture),
                    "How many objects are there?",
                    keep=keep,
                    max_new_tokens=TOKENS,
                ).result
            times = result.timings
            rows.append(
                {
                    "ids": list(result.token_ids),
                    "kept": list(result.images[0].kept_indices),
                    "vision": times.vision,
                    "ttft": times.ttft,
                    "decode": statistics.median(times.decode or [0.0]),
                }
            )
    return rows


def int4() -> None:
    """How far int4 on this device is from plain MatMul with the dequantised weights, there too."""
    from benchmarks.int4_arithmetic import _distance, _spell, measure
    from divprune.runtime import Pipeline

    engine, exact = _export(SMALL / "checkpoint", "small-int4", **INT4), WORK / "small-exact"
    if not exact.exists():
        shutil.copytree(engine, exact)
        _spell(exact, "dequantised weights")
    pictures = sorted((SMALL / "scenes").glob("*.png"))[: 1 if QUICK else 6]
    for where in BOTH:
        rows = [
            measure(Pipeline.from_dir(path, device=where), pictures) for path in (engine, exact)
        ]
        save("int4", answers=len(rows[0]), **{where: _distance(*rows)})


def ort(shape: str = "llava-1.1b", quant: str = "", rounds: str = "12") -> None:
    """A random model of that shape, keep 1.0 and 0.1 in turns; rows are saved as they come."""
    key = f"ort_{shape}{'-' + quant if quant else ''}"
    begin = time.perf_counter()
    checkpoint = _random_checkpoint(shape)
    save(key, write_s=time.perf_counter() - begin)
    options = {"quant": quant} if quant else {}
    engine = _export(checkpoint, f"random-{shape}{quant}", keep=0.1, **options)
    save(key, export_s=time.perf_counter() - begin)
    from divprune.runtime import Pipeline

    pipeline = Pipeline.from_dir(engine, device=DEVICE)
    save(key, opened_s=time.perf_counter() - begin, backend=pipeline.backend.name)
    picture = str(ROOT / "benchmarks" / "picture.jpg")
    found: dict[str, list[dict]] = {"keep 1": [], "keep 0.1": []}
    for number in range(int(rounds)):
        for name, rows in found.items():
            pipeline.forget()
            result = pipeline.generate(
                picture,
                "Describe the image.",
                keep=float(name.partition(" ")[2]),
                max_new_tokens=16,
                ignore_eos=True,
            ).result
            if number >= min(2, int(rounds) - 1):
                rows.append(_row(result))
                median = {k: round(statistics.median(r[k] for r in rows), 3) for k in rows[0]}
                save(key, **{name: median | {"rounds": len(rows)}})
    _time_selection(key, engine)


def _row(result) -> dict:
    times = result.timings
    return {
        "preprocess": times.preprocess,
        "vision": times.vision,
        "merge": times.merge,
        "prefill": times.prefill,
        "ttft": times.ttft,
        "decode": statistics.median(times.decode),
        "prompt": result.prompt_tokens,
    }


def _time_selection(key: str, engine: Path) -> None:
    """The selection alone, features on the host: with the Loop, and on CUDA by the kernels."""
    import onnxruntime

    from divprune.plugins.driver import Driver
    from divprune.plugins.feature_selection import SIMILARITIES
    from divprune.runtime.backends.onnxruntime import loading
    from divprune.runtime.backends.onnxruntime.selection_kernel import SelectionKernel
    from divprune.runtime.directory.engine_directory import EngineDirectory

    directory = EngineDirectory.open(engine)
    ways = {
        "loop": loading.open_selection_graph(onnxruntime, directory, device=DEVICE, threads=None)
    }
    for similarities in ("float32", "float16") if DEVICE == "cuda" else ():
        os.environ[SIMILARITIES] = similarities
        kernel = SelectionKernel(Driver())
        ways[kernel.title] = loading.open_kernel_selection(
            onnxruntime, directory, kernel, threads=None
        )
        del os.environ[SIMILARITIES]
    spec = directory.manifest.graphs["selection"].inputs[0]
    shape = [int(size) for size in spec.shape]
    features = np.random.default_rng(0).standard_normal(shape).astype(spec.dtype)
    chosen = {name: select(features).tolist() for name, select in ways.items()}
    took = {name: [] for name in ways}
    for _ in range(8):
        for name, select in ways.items():
            begin = time.perf_counter()
            select(features)
            took[name].append((time.perf_counter() - begin) * 1000)
    save(
        key,
        selection_of=shape,
        selection_ms={name: statistics.median(times) for name, times in took.items()},
        same_indices=all(each == chosen["loop"] for each in chosen.values()),
    )


def _random_checkpoint(shape: str) -> Path:
    """Written once. One drawn block again and again: fresh numbers for 7B would take minutes."""
    from divprune.export.checkpoint.checkpoint import expected_tensors
    from divprune.export.checkpoint.random import TensorSource, shape_config, write_checkpoint

    checkpoint = WORK / f"checkpoint-{shape}"
    if checkpoint.exists():
        return checkpoint
    size = 1 << 22
    block = np.random.default_rng(0).standard_normal(size).astype(np.float32) * np.float32(0.02)

    def quick(name, shape):
        total = int(np.prod(shape))
        is_norm = name.endswith("weight") and ("norm" in name.split(".")[-2] or len(shape) == 1)

        def pieces():
            for start in range(0, total, size):
                values = block[: min(size, total - start)]
                yield values + np.float32(1) if is_norm else values

        return TensorSource(shape, pieces)

    config = shape_config(shape)
    tensors = {name: quick(name, size) for name, size in expected_tensors(config).items()}
    return write_checkpoint(checkpoint, config, tensors, layout="v5")


def _export(checkpoint: Path, name: str, **options) -> Path:
    from divprune.export.export_model import export_model
    from divprune.export.planning.options import ExportOptions

    engine = WORK / name
    if not engine.exists():
        engine.parent.mkdir(parents=True, exist_ok=True)
        export_model(
            ExportOptions(
                model=str(checkpoint), dtype="fp16", output=engine, verify=False, **options
            )
        )
    return engine
