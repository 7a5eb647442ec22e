"""How fast ONNX Runtime multiplies one linear layer on this CPU, in every form exports can have.

    python benchmarks/cpu_kernels.py

The layer is a gate projection of the 1.1B shape (2048 inputs, 5632 outputs); 1 row is a decode
step, 118 and 636 rows are prompts with 58 and 576 visual tokens. Forms take turns within each
round. Writes ``cpu-kernels.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from benchmarks.export_figures import machine  # noqa: E402
from divprune.export.checkpoint.quantization.dynamic_int8 import dynamic_int8_matmul  # noqa: E402
from divprune.export.checkpoint.quantization.matmul_nbits import matmul_nbits  # noqa: E402
from divprune.export.checkpoint.quantization.matrix import QuantizedMatrix  # noqa: E402
from divprune.export.checkpoint.quantization.quantize import quantize  # noqa: E402
from divprune.export.graphs.writer import GraphWriter  # noqa: E402
from divprune.runtime.directory.quant_scheme import INT8, QuantScheme  # noqa: E402

INPUTS, OUTPUTS = 2048, 5632
ROWS = (1, 118, 636)
FLOAT = ir.DataType.FLOAT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args()
    sessions = {name: open_session(write, args.threads) for name, write in forms().items()}
    times = {rows: measure(sessions, rows, args.rounds) for rows in ROWS}
    report = {"machine": machine(), "threads": args.threads, "milliseconds": times}
    args.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1) + "\n"
    (args.output / "cpu-kernels.json").write_text(text, encoding="utf-8")
    table = render(report)
    (args.output / "cpu-kernels.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def forms():
    """What writes the layer, by name."""
    import torch

    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0))
    dense = np.ascontiguousarray(weight.numpy().T)

    def packed(scheme):
        numbers = quantize(weight, scheme, "rtn", np.dtype(np.float32))
        return QuantizedMatrix("weight", (OUTPUTS, INPUTS), scheme, lambda: numbers, max_zero=15)

    found = {"fp32": lambda op, x: op("MatMul", x, op.constant(dense, "weight"))}
    for block in (32, 64, 128):
        matrix = packed(QuantScheme(4, block, symmetric=True))
        for level in (0, 4):
            found[f"int4, groups of {block}, level {level}"] = (
                lambda op, x, matrix=matrix, level=level: matmul_nbits(
                    op, x, matrix, FLOAT, "y", level
                )
            )
    matrix = packed(INT8)
    for rows, label in ((True, "a scale a row"), (False, "one scale")):
        found[f"int8, {label}"] = lambda op, x, rows=rows: dynamic_int8_matmul(
            op, x, matrix, FLOAT, "y", scale_rows=rows
        )
    return found


def open_session(write, threads):
    import onnxruntime

    op = GraphWriter()
    x = ir.val("x", FLOAT, (1, "rows", INPUTS))
    y = write(op, x)
    y.dtype = FLOAT
    graph = ir.Graph(
        [x],
        [y],
        nodes=op.nodes,
        initializers=op.initializers,
        opset_imports={"": 20, "com.microsoft": 1},
        name="layer",
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # The threads of one form must not wait actively while another one computes.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(sessions, rows, rounds):
    """Milliseconds of each round, by form."""
    x = np.random.default_rng(0).standard_normal((1, rows, INPUTS)).astype(np.float32)
    times = {name: [] for name in sessions}
    for number in range(rounds + 2):
        for name, session in sessions.items():
            session.run(None, {"x": x})  # its weights into the caches, as far as they fit
            start = time.perf_counter()
            session.run(None, {"x": x})
            if number > 1:
                times[name].append((time.perf_counter() - start) * 1000)
    return times


def render(report):
    lines = [
        "# One linear layer on a CPU\n\n",
        "Made by `benchmarks/cpu_kernels.py`: 2048 inputs, 5632 outputs, milliseconds, median\n",
        f"(smallest-largest), {report['threads']} threads on {report['machine']['cpu']}.\n\n",
        "| weights | " + " | ".join(f"{rows} rows" for rows in ROWS) + " |\n",
        "| --- |" + " --: |" * len(ROWS) + "\n",
    ]
    for name in report["milliseconds"][ROWS[0]]:
        cells = [cell(report["milliseconds"][rows][name]) for rows in ROWS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |\n")
    return "".join(lines)


def cell(times):
    return f"{statistics.median(times):.2f} ({min(times):.2f}-{max(times):.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
