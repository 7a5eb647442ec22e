"""Time the selection kernel on a GPU beside the same selection in torch.

    python benchmarks/kernel_latency.py --output benchmarks/results/kernel-latency-DEVICE.json
    python benchmarks/kernel_table.py

Needs an NVIDIA GPU and torch with CUDA; torch allocates, times with CUDA events and is one of
the contestants. Each works on one float32 similarity matrix that lies on the GPU already:

    kernel      the shipped PTX, launched through the driver; seed given
    published   the loop as published: at each step the distances to all selected tokens are
                gathered and reduced anew, one argmax, nothing masked
    running     the same with a running minimum, which reads each row once

Indices of the kernel must be those of the NumPy reference, or nothing is written.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from divprune.export.selection.divprune import greedy_max_min, similarity
from divprune.plugins.driver import Driver, GreedyMaxMinKernel
from divprune.plugins.node import plan_launch
from divprune.runtime.cli.main_guard import run_guarded
from divprune.runtime.errors import BackendError, NumericalError

__all__ = ["choose_as_published", "choose_with_running_minimum", "main"]

SHAPES = ((576, 58), (2880, 288))
FEATURES = 4096
LAUNCHES_A_SAMPLE = 20  # of the kernel, so that what the host needs for one is hidden


def choose_as_published(distance, seed: int, num_kept: int):
    """DivPrune's loop from the text of its paper: distances [N, N] to indices [K]."""
    import torch

    selected = torch.empty(num_kept, dtype=torch.long, device=distance.device)
    selected[0] = seed
    for step in range(1, num_kept):
        nearest = distance.index_select(0, selected[:step]).min(dim=0).values
        selected[step] = nearest.argmax()
    return selected


def choose_with_running_minimum(distance, seed: int, num_kept: int):
    """The same indices with a running minimum, selected tokens masked."""
    import torch

    selected = torch.empty(num_kept, dtype=torch.long, device=distance.device)
    selected[0] = seed
    nearest = distance[seed].clone()
    nearest[seed] = -torch.inf
    for step in range(1, num_kept):
        selected[step] = nearest.argmax()
        torch.minimum(nearest, distance.index_select(0, selected[step : step + 1])[0], out=nearest)
        nearest.index_fill_(0, selected[step : step + 1], -torch.inf)
    return selected


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--warmup", type=int, default=5, help="rounds before (default: 5)")
    parser.add_argument("--iters", type=int, default=30, help="rounds timed (default: 30)")
    arguments = parser.parse_args(argv)
    return run_guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    torch = _torch_with_gpu()
    driver = Driver()
    torch.zeros(1, device="cuda")  # makes the context that the kernel is loaded into
    kernel = GreedyMaxMinKernel(driver)
    report = {
        "kind": "kernel-latency",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "capability": "{}.{}".format(*torch.cuda.get_device_capability()),
        "driver": _driver_version(driver),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "warmup": arguments.warmup,
        "iters": arguments.iters,
        "rows": [_measure(kernel, *shape, arguments) for shape in SHAPES],
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{arguments.output}: {report['device']}")
    return 0


def _measure(
    kernel: GreedyMaxMinKernel, num_tokens: int, num_kept: int, arguments: argparse.Namespace
) -> dict:
    import torch

    features = np.random.default_rng(0).standard_normal((num_tokens, FEATURES), np.float32)
    gram = similarity(features)
    expected = greedy_max_min(gram, num_kept)
    on_gpu = torch.from_numpy(gram).cuda()
    distance = 1 - on_gpu
    seed = torch.full((num_kept,), int(expected[0]), dtype=torch.int32, device="cuda")
    order = torch.full((num_kept,), -1, dtype=torch.int32, device="cuda")
    cover = torch.zeros(num_kept, device="cuda")
    torch.cuda.synchronize()

    def launch() -> None:
        kernel.launch(
            on_gpu.data_ptr(),
            seed.data_ptr(),
            order.data_ptr(),
            cover.data_ptr(),
            num_tokens=num_tokens,
            num_kept=num_kept,
            stream=torch.cuda.current_stream().cuda_stream,
        )

    launch()
    torch.cuda.synchronize()
    if order.tolist() != expected.tolist():
        raise NumericalError(f"The kernel chose otherwise than the reference: {num_tokens}")
    first = int(expected[0])
    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "kernel": (launch, LAUNCHES_A_SAMPLE),
        "published": (lambda: choose_as_published(distance, first, num_kept), 1),
        "running": (lambda: choose_with_running_minimum(distance, first, num_kept), 1),
    }
    samples = {name: _time(*work, arguments) for name, work in contestants.items()}
    row = {"num_tokens": num_tokens, "num_kept": num_kept}
    row |= {"threads": plan_launch(num_tokens, num_kept).threads}
    return row | {name: _summary(times) for name, times in samples.items()}


def _time(work: Callable[[], object], repeats: int, arguments: argparse.Namespace) -> list[float]:
    """Milliseconds of each round, by CUDA events around ``repeats`` calls."""
    import torch

    times = []
    for round_number in range(arguments.warmup + arguments.iters):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        if round_number >= arguments.warmup:
            times.append(start.elapsed_time(end) / repeats)
    return times


def _summary(times: list[float]) -> dict[str, float]:
    p10, *_, p90 = statistics.quantiles(times, n=10)
    return {"p50_ms": statistics.median(times), "p10_ms": p10, "p90_ms": p90}


def _driver_version(driver: Driver) -> str:
    """The newest CUDA version that the driver knows."""
    import ctypes

    number = ctypes.c_int()
    driver.call("cuDriverGetVersion", ctypes.byref(number))
    return f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def _torch_with_gpu():
    import torch

    if not torch.cuda.is_available():
        raise BackendError(
            "The kernel's latency cannot be measured here",
            expected="an NVIDIA GPU, and torch built for CUDA",
            found=f"torch {torch.__version__} that sees no GPU",
            fix="run this script on a machine with an NVIDIA GPU",
        )
    return torch


if __name__ == "__main__":
    raise SystemExit(main())
