"""Time and memory of the selection of a video, by its length: 144 tokens a frame, one pool.

    python benchmarks/video_selection.py [--frames 8,16,32,64] [--output FILE.json]

Each length is a process of its own, in which ONNX Runtime runs the selection graph that an export
has for pictures of any size, on random features of the width of a 7B model. Up to 8 192 tokens that
graph holds the similarities of all pairs; an export whose longest video has more
(``--max-image-tokens``) computes rows on demand. Both are measured at every length. Memory is what
the process takes more while it selects, beside what the matrix of all pairs alone takes.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FRAME_TOKENS, WIDTH, KEEP = 144, 4096, 0.1
ON_DEMAND, ALL_PAIRS = "rows on demand", "all pairs"

_RUN = """
import json, statistics, sys, time
import numpy as np, onnxruntime
from divprune.runtime.memory import peak_rss
model, tokens, kept, width, rounds = sys.argv[1], *map(int, sys.argv[2:])
options = onnxruntime.SessionOptions()
options.enable_cpu_mem_arena = False
session = onnxruntime.InferenceSession(model, options)
features = np.random.default_rng(0).standard_normal((tokens, width), np.float32)
feeds = {"image_features": features, "kept_slots": np.zeros(kept, np.int32)}
before = peak_rss()
times = []
for _ in range(rounds):
    start = time.perf_counter()
    order = session.run(["selection_order"], feeds)[0]
    times.append(time.perf_counter() - start)
after = peak_rss()
assert len(set(order.tolist())) == kept
print(json.dumps({"seconds": statistics.median(times), "mib": (after - before) / 2**20}))
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", default="8,16,32,64")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args(argv)
    lengths = [int(word) for word in arguments.frames.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (ALL_PAIRS, ON_DEMAND):
            model = write_model(Path(folder) / f"{name}.onnx", name, arguments.width)
            rows += [measure(model, name, n, arguments.width, arguments.rounds) for n in lengths]
    rows.sort(key=lambda row: row["frames"])
    print_table(rows)
    report = {
        "kind": "video selection",
        "machine": platform.processor() or platform.machine(),
        "width": arguments.width,
        "keep": KEEP,
        "rows": rows,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def write_model(path: Path, name: str, width: int) -> Path:
    """The selection graph with or without the matrix, for any number of tokens."""
    import onnx_ir as ir

    from divprune.export.selection import get_selector
    from divprune.export.selection.protocol import Setting
    from divprune.export.selection.selection_graph import write_selection
    from divprune.export.selection.similarity import MAX_GRAM_TOKENS

    most = MAX_GRAM_TOKENS + (1 if name == ON_DEMAND else 0)
    selector = get_selector("divprune", Setting(max_tokens=most))
    ir.save(write_selection(selector, None, None, width, ir.DataType.FLOAT), path)
    return path


def measure(model: Path, name: str, frames: int, width: int, rounds: int) -> dict:
    tokens = frames * FRAME_TOKENS
    kept = round(KEEP * tokens)
    words = [sys.executable, "-c", _RUN, model, tokens, kept, width, rounds]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=True)
    found = {"frames": frames, "tokens": tokens, "kept": kept, "similarities": name}
    return found | {"matrix_mib": tokens**2 * 4 / 2**20} | json.loads(done.stdout)


def print_table(rows: list[dict]) -> None:
    print(
        f"{'frames':>6} {'tokens':>6} {'kept':>5}  {'similarities':<14} {'s':>7} {'MiB':>6} matrix"
    )
    for row in rows:
        print(
            f"{row['frames']:>6} {row['tokens']:>6} {row['kept']:>5}  {row['similarities']:<14}"
            f"{row['seconds']:>8.2f} {row['mib']:>6.0f} {row['matrix_mib']:>6.0f}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
