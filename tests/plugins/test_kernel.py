"""The kernel gives the reference's indices: emulated on the host, and on a GPU (`-m gpu`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from divprune.plugins import driver as driver_module
from divprune.plugins.node import MAX_TOKENS, plan_launch
from divprune.plugins.ptx import SOURCE_FILE
from tests.plugins.emulator import EmulatedDriver
from tests.plugins.kernel_runner import KernelRunner
from tests.plugins.matrices import KINDS, SHAPES, Matrix, matrix

divprune = pytest.importorskip(
    "divprune.export.selection.divprune", reason="the reference belongs to the export side"
)
NOTHING = -np.finfo(np.float32).max
RACES = 20  # schedules tried before a kernel is taken to be free of a race


def _reference(gram: Matrix, num_kept: int) -> list[int]:
    return divprune.greedy_max_min(gram, num_kept).tolist()


def _follow(gram: Matrix, seed: int, num_kept: int) -> list[int]:
    """The rule word by word, from any first token."""
    order = [seed]
    while len(order) < num_kept:
        free = [token for token in range(len(gram)) if token not in order]
        order.append(min(free, key=lambda token: (gram[order, token].max(), token)))
    return order


def _wrong(runner: KernelRunner, kind: str, shapes: list[tuple[int, int]]) -> list[str]:
    """The cases in which the kernel and the reference differ."""
    wrong = []
    for num_tokens, num_kept in shapes:
        gram = matrix(kind, num_tokens)
        order, cover = divprune.choose_max_min(divprune.Gram(gram), num_kept)
        orders, covers = runner.run(gram[np.newaxis], [order[0]], num_kept)
        if not (np.array_equal(orders[0], order) and np.array_equal(covers[0], cover)):
            wrong.append(f"{kind}: {num_kept} of {num_tokens}")
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_order_is_the_references(runner: KernelRunner, kind: str) -> None:
    assert len(SHAPES) * len(KINDS) > 600
    assert _wrong(runner, kind, SHAPES) == []


@pytest.mark.parametrize("num_tokens", [3073, 4097, 5121, 6145, 7169, 8193, MAX_TOKENS])
def test_order_is_the_references_at_every_entry_of_the_ptx(
    runner: KernelRunner, num_tokens: int
) -> None:
    assert _wrong(runner, "coarse", [(num_tokens, 50)]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_any_first_token_will_do(runner: KernelRunner, kind: str) -> None:
    gram = matrix(kind, 70)
    for seed in (0, 1, 31, 32, 69):
        assert runner.order(gram, seed, 40) == _follow(gram, seed, 40)


def test_first_tokens_out_of_range_are_brought_into_it(runner: KernelRunner) -> None:
    gram = matrix("cosines", 40)
    assert runner.order(gram, -5, 9) == _follow(gram, 0, 9)
    assert runner.order(gram, 2**31 - 1, 9) == _follow(gram, 39, 9)


def test_every_image_has_its_own_order(runner: KernelRunner) -> None:
    grams = np.stack([matrix(kind, 65) for kind in ("cosines", "coarse", "wild")])
    expected = [_reference(gram, 20) for gram in grams]
    seeds = [order[0] for order in expected]
    assert runner.orders(grams, seeds, 20).tolist() == expected


def test_nan_similarities_are_ignored(runner: KernelRunner) -> None:
    gram = matrix("cosines", 100)
    holes = np.random.default_rng(5).random(gram.shape) < 0.3
    holes[:, 17] = True
    without = np.where(holes, NOTHING, gram)
    for nan in np.array([0x7FC00000, 0xFFC00000, 0x7F800001], np.uint32).view(np.float32):
        order = runner.order(np.where(holes, nan, gram), 3, 100)
        assert order == _follow(without, 3, 100)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.finfo(np.float32).max])
def test_no_token_comes_twice_whatever_the_matrix_holds(runner: KernelRunner, value: float) -> None:
    gram = np.full((1030, 1030), value, np.float32)
    assert runner.order(gram, 4, 1030) == [4, *range(4), *range(5, 1030)]


def test_infinite_similarities_are_compared(runner: KernelRunner) -> None:
    gram = matrix("unsymmetric", 90)
    gram[:, ::3] = np.inf
    gram[:, 1] = -np.inf
    assert runner.order(gram, 2, 90) == _follow(np.maximum(gram, NOTHING), 2, 90)


@pytest.mark.parametrize("max_tokens", [70, 1024, 3000, MAX_TOKENS])
def test_a_launch_for_the_most_tokens_serves_fewer(
    runner: KernelRunner, monkeypatch: pytest.MonkeyPatch, max_tokens: int
) -> None:
    monkeypatch.setattr(driver_module, "plan_launch", lambda n, k: plan_launch(max_tokens, 1))
    shapes = [(1, 1), (31, 31), (33, 9), (70, 12)]
    assert [wrong for kind in KINDS for wrong in _wrong(runner, kind, shapes)] == []


def test_cover_is_the_least_similarity_of_a_token_left_to_its_nearest_choice(
    runner: KernelRunner,
) -> None:
    gram = matrix("cosines", 50)
    orders, covers = runner.run(gram[np.newaxis], [7], 50)
    for k, found in enumerate(covers[0], 1):
        chosen = orders[0, :k]
        left = np.setdiff1d(np.arange(50), chosen)
        assert found == (gram[np.ix_(chosen, left)].max(axis=0).min() if left.size else 1.0)


def test_every_schedule_gives_the_same_order(emulated_driver: EmulatedDriver) -> None:
    runner = KernelRunner(emulated_driver)
    gram = matrix("coarse", 577)
    expected = _reference(gram, 30)
    for number in range(RACES):
        emulated_driver.set_schedule(number)
        assert runner.order(gram, expected[0], 30) == expected
    emulated_driver.set_schedule(0)


@pytest.mark.parametrize(
    ("part", "instead"),
    [
        ("    __syncthreads();\n", ""),
        ("slots + step % 2 * kMaxWarps", "slots"),
        ("number + 0.0f", "number"),
        ("value == least ? static_cast<unsigned>(candidate) : kNothing", "candidate"),
        ("            if (token == last) closed |= 1u << slot;\n", ""),
        ("fmaxf(largest[slot], row", "(row"),
        ("value & 0x80000000 ? value & 0x7fffffff : ~value", "value"),
        ("fminf(__uint", "(__uint"),
    ],
    ids=["barrier", "second slots", "signed zero", "ties", "selected", "running", "sign", "bound"],
)
def test_kernel_that_lacks_a_part_fails(tmp_path: Path, part: str, instead: str) -> None:
    """The tests above notice each of them: the emulator hides no race and no lapse."""
    source = SOURCE_FILE.read_text()
    assert source.count(part) == 1
    driver = EmulatedDriver(tmp_path, source.replace(part, instead))
    for number in range(RACES):
        driver.set_schedule(number)
        for kind in ("signed zeros", "coarse", "cosines"):
            if _wrong(KernelRunner(driver), kind, [(300, 40), (1500, 20), (9, 9)]):
                return
    pytest.fail("the kernel still gives the reference's order")


_READ_BESIDE_A_FORBIDDEN_PAGE = """
import ctypes, mmap, sys
import numpy as np
from divprune.plugins.driver import Driver, GreedyMaxMinKernel

n, k, page = int(sys.argv[2]), 12, mmap.PAGESIZE
size = -(-4 * n * n // page) * page
memory = mmap.mmap(-1, size + 2 * page)
whole = np.frombuffer(memory, np.uint8)
base = whole.ctypes.data
for forbidden in (base, base + page + size):
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(forbidden), page, 0) == 0
order, cover, seed = np.zeros(k, np.int32), np.zeros(k, np.float32), np.full(k, n - 1, np.int32)
kernel = GreedyMaxMinKernel(Driver(ctypes.CDLL(sys.argv[1])))
for start in (page, page + size - 4 * n * n):
    gram = whole[start : start + 4 * n * n].view(np.float32)
    gram[:] = np.random.default_rng(0).random(n * n, np.float32)
    outputs = order.ctypes.data, cover.ctypes.data
    kernel.launch(base + start, seed.ctypes.data, *outputs, num_tokens=n, num_kept=k)
print(len(set(order.tolist())))
"""


@pytest.mark.parametrize("num_tokens", [33, 577, 1030])
def test_nothing_outside_the_matrix_is_read(
    emulated_driver: EmulatedDriver, num_tokens: int
) -> None:
    program = [sys.executable, "-c", _READ_BESIDE_A_FORBIDDEN_PAGE]
    command = [*program, str(emulated_driver.path), str(num_tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "12"
