"""The kernels for many tokens: right, how fast, and beside what is used without them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.gpu_day.kernel_steps import FEATURES, open_kernel, timed, torch_on_device
from benchmarks.gpu_day.report import DEVICE, QUICK, output, save

SHAPES = [(1, 1), (33, 33), (577, 64), (1025, 41), (2880, 288), (5121, 60), (7169, 60)]
SHAPES += [(10240, 1024)]
TIMED = [(2880, 288), (5760, 576), (10240, 1024)]
KINDS = ("cosine", "coarse", "duplicates")
SHAPES_OF_FEATURES = [(1, 1), (33, 33), (577, 64), (1025, 300), (2880, 288), (10240, 1024)]
KINDS_OF_FEATURES = ("normal", "duplicates", "near", "zeros", "equal", "bunch")


def many_blocks() -> None:
    """All of it, the most valuable first; what is known so far is saved."""
    torch = torch_on_device()
    driver = open_driver()
    kernels = _kernels(driver)
    save("many_blocks", methods=list(kernels))
    _order(torch, kernels)
    for n, k in [(66, 12)] if QUICK else TIMED:
        _latency(torch, kernels, n, k)
        torch.cuda.empty_cache()
    features(torch, driver, list(kernels))


def open_driver():
    """The GPU's, or the emulated one of a rehearsal."""
    if DEVICE == "cpu":
        from tests.plugins.emulator import EmulatedManyDriver

        folder = output() / "many_emulator"
        folder.mkdir(exist_ok=True)
        return EmulatedManyDriver(folder)
    from divprune.plugins.driver import Driver

    return Driver()


def _kernels(driver) -> dict[str, Any]:
    """By method; clusters where the GPU has them."""
    from divprune.plugins.many_blocks import ManyBlocksKernel
    from divprune.runtime.errors import UnsupportedError

    kernels = {"grid": ManyBlocksKernel(driver, "grid")}
    try:
        kernels["cluster"] = ManyBlocksKernel(driver, "cluster")
    except UnsupportedError as error:
        save("many_blocks", no_cluster=str(error.found))
    return kernels


class Case:
    """A matrix on the device, and a place for the results."""

    def __init__(self, torch, gram: np.ndarray, k: int) -> None:
        from divprune.export.selection.divprune import Gram, choose_max_min

        self.torch, self.n, self.k = torch, len(gram), k
        expected = choose_max_min(Gram(gram), k)
        self._order, self._cover = expected.order.tolist(), expected.cover.tolist()
        self._gram = torch.from_numpy(np.ascontiguousarray(gram)).to(DEVICE)
        self._seed = torch.full((k,), self._order[0], dtype=torch.int32, device=DEVICE)
        self._found = torch.empty(k, dtype=torch.int32, device=DEVICE)
        self._found_cover = torch.empty(k, device=DEVICE)
        tensors = (self._gram, self._seed, self._found, self._found_cover)
        self.places = tuple(tensor.data_ptr() for tensor in tensors)

    def run(self, kernel, plan) -> None:
        stream = self.torch.cuda.current_stream().cuda_stream
        kernel.launch(self.places, self.n, self.k, stream, plan)

    def is_right(self, work: Callable[[], None]) -> bool:
        self._found.fill_(-1)
        self._found_cover.fill_(-2)
        work()
        self.torch.cuda.synchronize()
        return self._found.tolist() == self._order and self._found_cover.tolist() == self._cover


def _order(torch, kernels: dict[str, Any]) -> None:
    """Indices and cover against the reference, for both ways and every kind of matrix."""
    from divprune.plugins.many_blocks import plan_blocks

    wrong, cases, begin = [], 0, time.perf_counter()
    for n, k in SHAPES[:3] if QUICK else SHAPES:
        for kind in KINDS:
            case = Case(torch, _matrix(kind, n), k)
            for method, kernel in kernels.items():
                work = _bind(case.run, kernel, plan_blocks(n, k, method))
                cases += 1
                if not case.is_right(work):
                    wrong.append([n, k, kind, method])
        save("many_blocks", cases=cases, wrong=wrong, last=[n, k], s=time.perf_counter() - begin)


def _matrix(kind: str, n: int) -> np.ndarray:
    from divprune.export.selection.divprune import similarity

    rng = np.random.default_rng([KINDS.index(kind), n])
    if kind == "coarse":
        rows = rng.integers(-2, 3, (n, 3)).astype(np.float32)
        return rows @ rows.T
    rows = rng.standard_normal((n, 64), np.float32)
    return similarity(rows if kind == "cosine" else rows[rng.integers(0, -(-n // 7), n)])


def _plans(n: int, method: str) -> Iterator[Any]:
    """Every launch that has a place for all tokens."""
    from divprune.plugins.many_blocks import BlocksLaunch

    for blocks in (2, 4, 8):
        for tokens in (1, 2, 4):
            threads = -(-n // (blocks * tokens * 32)) * 32
            if threads <= 1024:
                yield BlocksLaunch(f"{method}_{tokens}", blocks, threads)


def _latency(torch, kernels: dict[str, Any], n: int, k: int) -> None:
    """Every launch of both ways, and the single block."""
    from divprune.plugins.node import plan_launch

    case, one = Case(torch, _matrix("cosine", n), k), open_kernel()
    stream, plan = torch.cuda.current_stream().cuda_stream, plan_launch(n, k)
    single = _bind(one.launch, plan.entry, plan.threads, case.places, n, k, stream)
    work = {f"one, {plan.entry.rpartition('_')[2]} x {plan.threads}": single}
    for method, kernel in kernels.items():
        for each in _plans(n, method):
            name = f"{method}, {each.blocks} x {each.entry.rpartition('_')[2]} x {each.threads}"
            work[name] = _bind(case.run, kernel, each)
    rows = {}
    for name, run in work.items():
        right = DEVICE == "cpu" or case.is_right(run)  # a rehearsal's single block is pretended
        found = timed(torch, run, *((1, 1) if QUICK else (3, 10)))
        rows[name] = found | {"us_per_step": found["p50_us"] / max(1, k - 1), "right": right}
        save("many_blocks", **{f"{n}/{k}": rows})


def features(torch, driver, methods: list[str]) -> None:
    """The selection from float16 features: error, indices and time."""
    from divprune.plugins.feature_selection import FeatureSelection

    selections = {method: FeatureSelection(driver, method) for method in methods}
    wrong, cases, rounds = [], 0, 1 if QUICK else 5
    for n, k in [(70, 20)] if QUICK else SHAPES_OF_FEATURES:
        for kind in KINDS_OF_FEATURES:
            case = FeatureCase(torch, kind, n, k)
            for method, selection in selections.items():
                cases += 1
                if not case.is_right(selection):
                    wrong.append([n, k, kind, method])
            row = {"error_of_bound": case.error_of_bound()}
            if n >= 2880 or (QUICK and kind == "near"):
                row |= {
                    m: timed(torch, _bind(case.run, s), 1, rounds) for m, s in selections.items()
                }
            if kind == "normal":
                row["float32 product"] = timed(torch, case.product, 1, 5)
            save("many_features", cases=cases, wrong=wrong, **{f"{n}/{k} {kind}": row})
            torch.cuda.empty_cache()


class FeatureCase:
    """Features on the device, the order that they have to give, and a place for the results."""

    def __init__(self, torch, kind: str, n: int, k: int) -> None:
        from divprune.export.selection.divprune import Gram, choose_max_min
        from divprune.plugins.feature_selection import plan_workspace

        self.torch, self.n, self.k = torch, n, k
        self.width = 64 if QUICK else FEATURES
        self._features = torch.from_numpy(similar_features(kind, n, self.width)).to(DEVICE)
        wide = self._features.double()
        norms = wide.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self._exact = (wide @ wide.T / (norms @ norms.T)).float()
        expected = choose_max_min(Gram(self._exact.cpu().numpy()), k)
        self._order, self._cover = expected.order.tolist(), expected.cover.tolist()
        self._space = plan_workspace(n, k)
        self._workspace = torch.empty(self._space.num_bytes, dtype=torch.uint8, device=DEVICE)
        self._found = torch.empty(k, dtype=torch.int32, device=DEVICE)
        self._found_cover = torch.empty(k, device=DEVICE)

    def run(self, selection) -> None:
        tensors = (self._features, self._found, self._found_cover, self._workspace)
        stream = self.torch.cuda.current_stream().cuda_stream
        sizes = {"num_tokens": self.n, "width": self.width, "num_kept": self.k}
        selection.launch(*(tensor.data_ptr() for tensor in tensors), **sizes, stream=stream)

    def is_right(self, selection) -> bool:
        self._found.fill_(-1)
        self.run(selection)
        self.torch.cuda.synchronize()
        return self._found.tolist() == self._order and self._found_cover.tolist() == self._cover

    def error_of_bound(self) -> float:
        """The largest error of the matrix, of the bound that is assumed for it."""
        from divprune.plugins.feature_selection import error_bound

        start, end = self._space.gram, self._space.gram + 4 * self.n**2
        gram = self._workspace[start:end].view(self.torch.float32).reshape(self.n, self.n)
        return float((gram - self._exact).abs().max()) / error_bound(self.width)

    def product(self) -> None:
        """What the matrix costs in float32."""
        rows = self._features.float()
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
        _ = rows @ rows.T


def similar_features(kind: str, n: int, width: int) -> np.ndarray:
    """float16 [n, width]; ``near`` and ``bunch`` differ by less than the matrix can tell."""
    rng = np.random.default_rng([KINDS_OF_FEATURES.index(kind), n])
    rows = rng.standard_normal((n, width), np.float32)
    if kind in ("duplicates", "near"):
        rows = rows[rng.integers(0, -(-n // 7), n)]
    elif kind == "zeros":
        rows[rng.random(n) < 0.3] = 0
    elif kind == "equal":
        rows[:] = rows[0]
    elif kind == "bunch":
        rows = rows[:1] + rows / 1000
    half = rows.astype(np.float16)
    if kind == "near":
        place = np.arange(n), rng.integers(0, width, n)
        half[place] = np.nextafter(half[place], np.float16(np.inf))
    return half


def _bind(function, *arguments):
    return lambda: function(*arguments)
