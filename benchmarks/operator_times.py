"""Where an answer's time goes: milliseconds by operator, in each graph of an engine directory.

    python benchmarks/operator_times.py ENGINE_DIR [--picture 672x672] [--runs 3] [--output FILE.json]

ONNX Runtime's own profile of sessions with the options that `divprune-run` gives them, an answer
that does not count before.
"""  # noqa: E501

from __future__ import annotations

import argparse
import gc
import json
import logging
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.export_figures import picture_size
from divprune.runtime import Pipeline, __version__
from divprune.runtime.cli.main_guard import run_guarded

logger = logging.getLogger(__name__)

PICTURE = Path(__file__).with_name("picture.jpg")
PROMPT = "What is in the picture?"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine_dir", type=Path)
    parser.add_argument("--picture", type=picture_size, default="640x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--keep", type=float, help="default: the one of the export")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    return run_guarded(lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> int:
    picture = Image.open(PICTURE).resize(arguments.picture, Image.Resampling.LANCZOS)
    with tempfile.TemporaryDirectory() as folder, profiled_sessions(Path(folder)) as profiles:
        pipeline = Pipeline.from_dir(arguments.engine_dir, threads=arguments.threads)
        report = _facts(pipeline, arguments)
        for _ in range(1 + arguments.runs):
            answer = pipeline.generate(
                picture,
                PROMPT,
                keep=arguments.keep,
                max_new_tokens=arguments.new_tokens,
                ignore_eos=True,
                reuse=False,
            )
            logger.info("time to first token: %.1f ms", answer.result.timings.ttft)
        del pipeline
        gc.collect()
        report["graphs"] = {name: summarize(path, arguments.runs) for name, path in profiles()}
    text = json.dumps(report, indent=1)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


def _facts(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, Any]:
    manifest = pipeline.manifest
    return {
        "kind": "operator-times",
        "engine": Path(manifest.model.id).name,
        "backend": pipeline.backend.name,
        "machine": platform.processor() or platform.machine(),
        "version": __version__,
        "keep": arguments.keep or manifest.selector.keep,
        "picture": list(arguments.picture),
        "new_tokens": arguments.new_tokens,
        "runs": arguments.runs,
    }


@contextmanager
def profiled_sessions(folder: Path) -> Iterator[Any]:
    """Let sessions that are opened inside write profiles into a folder.

    Yields:
        A function that ends the profiles and gives each graph's name and file.
    """
    plain = onnxruntime.InferenceSession
    opened: list[tuple[str, Any]] = []

    class ProfiledSession(plain):  # type: ignore[misc, valid-type]
        def __init__(self, path: str, options: Any, **others: Any) -> None:
            name = "/".join(Path(path).parts[-2:])
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / name.replace("/", "-"))
            super().__init__(path, options, **others)
            opened.append((name, self))

    onnxruntime.InferenceSession = ProfiledSession
    try:
        yield lambda: [(name, Path(session.end_profiling())) for name, session in opened]
    finally:
        onnxruntime.InferenceSession = plain


def summarize(profile: Path, runs: int) -> dict[str, Any]:
    """Milliseconds and calls of an answer by operator, the costliest first.

    The first answer is left out: its calls are the first ``1 / (runs + 1)`` of the profile, for
    every answer runs the same graphs as often. What runs inside a Loop is counted there as well.
    """
    events = [
        event
        for event in json.loads(profile.read_text(encoding="utf-8"))
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
    counted = events[len(events) // (runs + 1) :]
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in counted:
        operator = event["args"]["op_name"]
        times[operator] += event["dur"]
        calls[operator] += 1
    return {
        "ms": round(sum(times.values()) / 1000 / runs, 2),
        "operators": {
            operator: {"ms": round(time / 1000 / runs, 2), "calls": calls[operator] // runs}
            for operator, time in times.most_common()
        },
    }


if __name__ == "__main__":
    sys.exit(main())
