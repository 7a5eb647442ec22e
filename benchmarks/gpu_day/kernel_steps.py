"""The selection kernel: right, how fast, and small cases for compute-sanitizer."""

from __future__ import annotations

import ctypes
import statistics
import time
from types import SimpleNamespace

import numpy as np

from benchmarks.gpu_day.report import DEVICE, QUICK, output, save

FEATURES = 4096
SHAPES = [(1, 1), (2, 2), (31, 7), (32, 32), (33, 9), (144, 14), (196, 49), (256, 26), (576, 58)]
SHAPES += [(576, 576), (577, 64), (729, 73), (1023, 40), (1024, 102), (1025, 41), (2048, 205)]
SHAPES += [(2049, 50), (2880, 288), (3073, 60), (4097, 60), (5121, 60), (6145, 60), (7169, 60)]
SHAPES += [(8193, 60), (9217, 60), (10240, 1024)]


class Raw:
    """Any entry of the shipped PTX with any number of threads, through the driver."""

    def __init__(self) -> None:
        from divprune.plugins.driver import Driver, GreedyMaxMinKernel

        self._driver = Driver()
        begin = time.perf_counter()
        self._kernel = GreedyMaxMinKernel(self._driver)
        self.jit_ms = (time.perf_counter() - begin) * 1000

    def launch(self, entry, threads, places, n, k, stream) -> None:
        gram, seed, order, cover = map(ctypes.c_uint64, places)
        values = (gram, seed, ctypes.c_int32(n), ctypes.c_int32(k), order, cover)
        addresses = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))
        shape = (1, 1, 1, threads, 1, 1)
        handle = ctypes.c_void_p(stream)
        function = self._kernel._entry(entry)
        self._driver.call("cuLaunchKernel", function, *shape, 0, handle, addresses, None)


class Pretend:
    """Stands in for the kernel where there is no GPU: a rehearsal of everything around it."""

    jit_ms = 0.0

    def launch(self, entry, threads, places, n, k, stream) -> None:
        from divprune.export.selection.divprune import greedy_max_min

        gram, _, order, _ = places
        floats = np.ctypeslib.as_array((ctypes.c_float * (n * n)).from_address(gram))
        out = np.ctypeslib.as_array((ctypes.c_int32 * k).from_address(order))
        out[:] = greedy_max_min(floats.reshape(n, n), k)


def open_kernel() -> Raw | Pretend:
    return Pretend() if DEVICE == "cpu" else Raw()


def torch_on_device():
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    if DEVICE == "cpu":
        _pretend(torch)
    torch.zeros(1, device=DEVICE)  # the context that kernels are loaded into
    return torch


def _pretend(torch) -> None:
    class Event:
        def __init__(self, **_):
            self.at = 0.0

        def record(self):
            self.at = time.perf_counter()

        def elapsed_time(self, other):
            return (other.at - self.at) * 1000

    torch.cuda.synchronize, torch.cuda.Event = lambda: None, Event
    torch.cuda.current_stream = lambda: SimpleNamespace(cuda_stream=0)
    torch.cuda.empty_cache = lambda: None


def order() -> None:
    """Indices against the NumPy reference, for every launch shape and both kinds of matrices."""
    torch = torch_on_device()
    from divprune.export.selection.divprune import greedy_max_min, similarity
    from divprune.plugins.node import plan_launch

    raw, wrong, cases = open_kernel(), [], 0
    save("kernel_order", jit_ms=raw.jit_ms)
    rng, begin = np.random.default_rng(0), time.perf_counter()
    for n, k in SHAPES[:9] if QUICK else SHAPES:
        for kind in ("cosine", "coarse"):
            rows = rng.integers(-2, 3, (n, 3)).astype(np.float32)
            gram = rows @ rows.T
            if kind == "cosine":
                gram = similarity(rng.standard_normal((n, 64), np.float32))
            expected = greedy_max_min(gram, k).tolist()
            on_gpu = torch.from_numpy(np.ascontiguousarray(gram)).to(DEVICE)
            seed = torch.full((k,), expected[0], dtype=torch.int32, device=DEVICE)
            out = torch.full((k + 128,), -77, dtype=torch.int32, device=DEVICE)
            cover = torch.zeros(k, device=DEVICE)
            plan = plan_launch(n, k)
            places = (on_gpu.data_ptr(), seed.data_ptr(), out.data_ptr() + 256, cover.data_ptr())
            stream = torch.cuda.current_stream().cuda_stream
            raw.launch(plan.entry, plan.threads, places, n, k, stream)
            torch.cuda.synchronize()
            got = out.tolist()
            cases += 1
            if got[64 : 64 + k] != expected or set(got[:64] + got[64 + k :]) != {-77}:
                wrong.append([n, k, kind, plan.entry])
        seconds = time.perf_counter() - begin
        save("kernel_order", cases=cases, wrong=wrong, last=[n, k], seconds=seconds)


def timed(torch, work, repeats: int, rounds: int, flush=None) -> dict:
    """Percentiles in µs of one ``work``, of ``rounds`` rounds of ``repeats`` after three more."""
    samples = []
    for number in range(rounds + 3):
        if flush is not None:
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            samples.append(start.elapsed_time(end) * 1000 / repeats)
    ordered = sorted(samples)
    tenth = len(ordered) // 10
    p50 = statistics.median(ordered)
    return {"p50_us": p50, "p10_us": ordered[tenth], "p90_us": ordered[-1 - tenth]}


def latency() -> None:
    """The kernel, all its launch shapes, torch's loops, and the ways to make the Gram matrix."""
    torch = torch_on_device()
    raw = open_kernel()
    size = 1 << 20 if QUICK else 96 << 20
    flush = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    sizes = [(64, 8)] if QUICK else [(576, 58), (2880, 288), (10240, 1024)]
    for n, k in sizes:
        _latency_of(torch, raw, flush, n, k)
        torch.cuda.empty_cache()


def _latency_of(torch, raw, flush, n: int, k: int) -> None:
    from benchmarks.kernel_latency import choose_as_published, choose_with_running_minimum
    from divprune.export.selection.divprune import greedy_max_min
    from divprune.plugins.node import plan_launch

    half = torch.randn(n, FEATURES, device=DEVICE, dtype=torch.float16)
    norms = half.float().norm(dim=1, keepdim=True).clamp_min(1e-12)
    unit = half.float() / norms
    gram = (unit @ unit.T).contiguous()
    expected = greedy_max_min(gram.cpu().numpy(), k)
    seed = torch.full((k,), int(expected[0]), dtype=torch.int32, device=DEVICE)
    out = torch.full((k,), -1, dtype=torch.int32, device=DEVICE)
    cover = torch.zeros(k, device=DEVICE)
    places = tuple(each.data_ptr() for each in (gram, seed, out, cover))
    stream, plan = torch.cuda.current_stream().cuda_stream, plan_launch(n, k)

    def run(entry=plan.entry, threads=plan.threads) -> None:
        raw.launch(entry, threads, places, n, k, stream)

    def is_right() -> bool:
        torch.cuda.synchronize()
        return out.tolist() == expected.tolist()

    run()
    row = {"indices_equal_reference": is_right(), "plan": [plan.entry, plan.threads]}
    row["kernel"] = timed(torch, run, 10, 20)
    row["kernel"]["us_per_step"] = row["kernel"]["p50_us"] / max(1, k - 1)
    row["kernel_cold_l2"] = timed(torch, run, 1, 10, flush)
    row["launch_shapes_us"] = {}
    for tokens in range(1, 11):
        threads = -(-n // (tokens * 32)) * 32
        if threads > 1024:
            continue
        out.fill_(-1)
        work = _bind(run, f"greedy_max_min_{tokens}", threads)
        work()
        right = is_right()
        median = round(timed(torch, work, 5, 8)["p50_us"], 2)
        row["launch_shapes_us"][f"{tokens} x {threads}"] = [median, right]
    save("kernel_latency", **{f"{n}/{k}": row})
    distance, first, rounds = 1 - gram, int(expected[0]), 5 if n < 5000 else 2
    for name, choose in (
        ("torch_running", choose_with_running_minimum),
        ("torch_published", choose_as_published),
    ):
        row[name] = timed(torch, _bind(choose, distance, first, k), 1, rounds)
    row["gram"] = _grams(torch, half, norms, unit, gram, expected)
    save("kernel_latency", **{f"{n}/{k}": row})


def _grams(torch, half, norms, unit, gram, expected) -> dict:
    """Time, error and order of each way to make the similarities."""
    from divprune.export.selection.divprune import greedy_max_min

    def with_tf32():
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            return unit @ unit.T
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False

    def from_half():  # products of float16 are exact in float32
        products = torch.mm(half, half.T, out_dtype=torch.float32)
        return products / norms / norms.T

    n, found = len(half), {}
    exact = (unit.double() @ unit.double().T).float() if n < 5000 else gram
    makers = {"fp32": lambda: unit @ unit.T, "tf32": with_tf32}
    for name, make in (makers | {"fp16 products, fp32 sums": from_half}).items():
        try:
            made = make()
        except Exception as error:  # torch of this machine may not have it
            found[name] = repr(error)[:200]
            continue
        chosen = greedy_max_min(made.cpu().numpy(), len(expected))
        found[name] = {
            **timed(torch, make, 1, 8 if n < 5000 else 3),
            "max_error": float((made - exact).abs().max()),
            "same_order": chosen.tolist() == expected.tolist(),
            "kept_in_common": len(set(chosen.tolist()) & set(expected.tolist())),
        }
    return found


def small() -> None:
    """Driver only, no torch: what compute-sanitizer watches; the other kernels too."""
    from divprune.export.selection.divprune import greedy_max_min, similarity
    from tests.plugins.kernel_runner import KernelRunner

    if DEVICE == "cpu":
        from tests.plugins.emulator import EmulatedDriver

        folder = output() / "emulator"
        folder.mkdir(exist_ok=True)
        driver = EmulatedDriver(folder)
    else:
        from divprune.plugins.driver import Driver

        driver = Driver()
    runner = KernelRunner(driver)
    for n, k in ((5, 5), (70, 20), (577, 12), (1030, 9), (2100, 5)):
        gram = similarity(np.random.default_rng(n).standard_normal((n, 16), np.float32))
        expected = greedy_max_min(gram, k).tolist()
        assert runner.order(gram, expected[0], k) == expected, (n, k)
    if DEVICE != "cpu":
        _reductions(runner)
        _many()
    save("kernel_small", all="right")


def _many() -> None:
    """The kernels for many tokens; a rehearsal has them in ``many_steps``."""
    from benchmarks.gpu_day.many_steps import open_driver, similar_features
    from divprune.export.selection.divprune import Gram, choose_max_min, similarity
    from divprune.plugins.feature_selection import exact_similarity
    from divprune.plugins.many_blocks import plan_blocks
    from tests.plugins.many_runner import ManyRunner

    runner = ManyRunner(open_driver())
    for n, k in ((5, 5), (300, 20), (1030, 9)):
        gram = similarity(np.random.default_rng(n).standard_normal((n, 16), np.float32))
        expected = choose_max_min(Gram(gram), k).order
        for method in runner.methods:
            plan = plan_blocks(n, k, method)
            found, _ = runner.choose(gram, int(expected[0]), k, method, plan)
            assert found == expected.tolist(), (n, k, method)
    features = similar_features("near", 150, 64)
    expected = choose_max_min(Gram(exact_similarity(features)), 40).order.tolist()
    for method in runner.methods:
        plan = plan_blocks(150, 40, method)
        assert runner.select(features, 40, method, plan)[0] == expected, method


def _reductions(runner) -> None:
    from divprune.runtime.backends.cuda.kernels import LoadedKernels

    kernels = LoadedKernels(runner.driver)
    logits = np.random.default_rng(1).standard_normal(32064).astype(np.float32)
    best = np.zeros(2, np.int32)
    places = runner._upload(logits), runner._upload(best)
    kernels.largest_logit(places[0], len(logits), places[1], 0)
    runner.driver.call("cuStreamSynchronize", None)
    runner._download(places[1], best)
    assert best[0] == int(np.argmax(logits)), best
    for dtype in (np.float16, np.float32):
        rows = np.random.default_rng(2).standard_normal((58, 4096)).astype(dtype)
        rows[3, 5], rows[57, 4095] = np.nan, np.inf
        broken = np.full(58, -1, np.int32)
        places = runner._upload(rows), runner._upload(broken)
        kernels.broken_rows(places[0], 58, 4096, rows.itemsize, places[1], 0)
        runner.driver.call("cuStreamSynchronize", None)
        runner._download(places[1], broken)
        assert np.flatnonzero(broken).tolist() == [3, 57], broken


def _bind(function, *arguments):
    return lambda: function(*arguments)
