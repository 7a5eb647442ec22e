r"""What lies between the bytes of a picture and the vision tower: times of two revisions in turns.

    git worktree add /tmp/before REVISION
    python benchmarks/preprocessing.py --old /tmp/before --output benchmarks/results/preprocessing.json

``open`` decodes the bytes, turns the picture upright and makes it RGB; ``again`` is what happens to a
picture that is decoded already, as a server's are; ``digest`` is its key in the cache; ``prepare`` makes
the inputs of the vision graph, for the image processor of each preset. Each revision has a process of its
own; both go through everything in turns, once a round. Times are milliseconds of wall time.
"""  # noqa: E501

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import PIL
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.append(str(ROOT))

PICTURE = Path(__file__).with_name("picture.jpg")
PICTURES = ("640x480.jpg", "1280x960.png", "4000x3000.jpg")
MODELS = ("llava-1.5-7b", "llava-1.6-vicuna-7b", "llava-onevision-7b", "internvl3-2b",
          "smolvlm2-2.2b", "qwen2.5-vl-3b", "qwen3-vl-2b")  # fmt: skip
WARM_UP = 2
T = TypeVar("T")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--old", type=Path, help="root of a checkout of the revision before")
    parser.add_argument("--new", type=Path, default=ROOT, help="default: this one")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=MODELS, help="presets")
    parser.add_argument("--pictures", nargs="+", default=PICTURES, metavar="WIDTHxHEIGHT.EXT")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.worker:
        return work(arguments.worker)
    roots = {"old": arguments.old, "new": arguments.new}
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), arguments.pictures)
        cases = {model: case_of(model) for model in arguments.models}
        Path(folder, "cases.json").write_text(json.dumps(cases), encoding="utf-8")
        found = measure(
            {name: root for name, root in roots.items() if root}, Path(folder), arguments.rounds
        )
    text = json.dumps(report_of(found, arguments.rounds), indent=1) + "\n"
    print(text, end="")
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    return 0


def write_pictures(folder: Path, names: list[str]) -> None:
    """The one picture, in all these sizes and formats."""
    with Image.open(PICTURE) as opened:
        picture = opened.convert("RGB")
    for name in names:
        size, _, kind = name.partition(".")
        width, height = map(int, size.split("x"))
        resized = picture.resize((width, height), Image.Resampling.BICUBIC)
        options = {"quality": 90} if kind == "jpg" else {}
        resized.save(folder / name, **options)


def case_of(model: str) -> dict[str, Any]:
    """What a family's runtime module reads of a preset."""
    from divprune.export.checkpoint.random.families import files_of
    from divprune.export.checkpoint.random.shapes import shape_config
    from divprune.export.families import class_of

    config = shape_config(model)
    files = files_of(config, "hub")
    tokens = {"image_token": "<image>", "video_token": "<video>"}
    return {
        "family": config.model_type,
        "facts": class_of(config.model_type)(config).facts() | tokens,
        "preprocessor": {**files.image_processor(), "video_processor": files.video_processor()},
    }


def measure(roots: dict[str, Path], folder: Path, rounds: int) -> dict[str, list[Any]]:
    """What the worker of each revision found in each round, warm-up left out."""
    words = [sys.executable, str(Path(__file__).resolve()), "--worker", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, list[Any]] = {name: [] for name in roots}
    try:
        for name, root in roots.items():
            environment = {**os.environ, "PYTHONPATH": str(root.resolve() / "src")}
            workers[name] = subprocess.Popen(words, env=environment, **pipes)  # type: ignore[call-overload]
        for number in range(-WARM_UP, rounds):
            for name in sorted(roots, reverse=bool(number % 2)):
                answer = ask(workers[name])
                if number >= 0:
                    found[name].append(answer)
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    return found


def ask(worker: subprocess.Popen[str]) -> Any:
    """One round of a worker."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def work(folder: Path, orders: IO[str] = sys.stdin) -> int:
    """A worker: one round for each line that comes in."""
    from divprune.runtime.families import family_class
    from divprune.runtime.generation.media_encoder import MediaEncoder
    from divprune.runtime.generation.picture_cache import PictureCache
    from divprune.runtime.inputs.messages import Medium

    cases = json.loads(Path(folder, "cases.json").read_text(encoding="utf-8"))
    families = {
        model: family_class(case["family"]).from_facts(case["facts"], case["preprocessor"], None)
        for model, case in cases.items()
    }
    files = {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.stem[0].isdigit()
    }
    nothing: Any = None
    encoder = MediaEncoder(nothing, next(iter(families.values())), nothing, PictureCache(0))
    for _ in orders:
        answer: dict[str, Any] = {}
        for name, data in files.items():
            times: dict[str, float] = {}
            opened = timed(times, "open", lambda d=data: encoder.open(Medium("image", d, "")))
            picture: Any = opened.content
            timed(times, "again", lambda p=picture: encoder.open(Medium("image", p, "")))
            timed(times, "digest", lambda p=picture: encoder._identify(p, 1, None, None))
            for model, family in families.items():
                timed(times, f"prepare {model}", lambda f=family, p=picture: f.prepare_image(p))
            answer[name] = times
        print(json.dumps(answer), flush=True)
    return 0


def timed(times: dict[str, float], name: str, step: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = step()
    times[name] = 1000 * (time.perf_counter() - start)
    return result


def report_of(found: dict[str, list[Any]], rounds: int) -> dict[str, Any]:
    """Medians with their range, and new over old in the same round."""
    from benchmarks.export_figures import machine

    pictures: dict[str, Any] = {}
    for name in found["new"][0]:
        pictures[name] = {}
        for step in found["new"][0][name]:
            values = {who: [each[name][step] for each in all_of] for who, all_of in found.items()}
            entry: dict[str, Any] = {who: spread(times, 2) for who, times in values.items()}
            if "old" in values:
                pairs = zip(values["old"], values["new"], strict=True)
                entry["new_over_old"] = spread([new / old for old, new in pairs], 3)
            pictures[name][step] = entry
    return {
        "machine": machine(),
        "pillow": PIL.__version__,
        "rounds": rounds,
        "unit": "ms, median with the 10 and 90 % quantiles",
        "pictures": pictures,
    }


def spread(values: list[float], digits: int) -> dict[str, float]:
    ordered = sorted(values)
    tenth = (len(ordered) - 1) // 10
    return {
        "median": round(statistics.median(ordered), digits),
        "p10": round(ordered[tenth], digits),
        "p90": round(ordered[-1 - tenth], digits),
    }


if __name__ == "__main__":
    raise SystemExit(main())
