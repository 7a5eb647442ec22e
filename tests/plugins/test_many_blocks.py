"""Several blocks give the reference's order: emulated on the host, and on a GPU (`-m gpu`)."""

from __future__ import annotations

import numpy as np
import pytest

from divprune.plugins import driver as driver_module
from divprune.plugins.driver import GreedyMaxMinKernel
from divprune.plugins.many_blocks import (
    MANY_FROM,
    VARIABLE,
    BlocksLaunch,
    ManyBlocksKernel,
    chosen_method,
    plan_blocks,
)
from divprune.plugins.node import MAX_TOKENS
from divprune.runtime.errors import BackendError, OptionError, UnsupportedError
from tests.plugins.emulator import EmulatedDriver, EmulatedManyDriver
from tests.plugins.kernel_runner import KernelRunner
from tests.plugins.lapses import EXCHANGE, LAPSES
from tests.plugins.many_runner import ManyRunner
from tests.plugins.matrices import KINDS, Matrix, matrix

divprune = pytest.importorskip(
    "divprune.export.selection.divprune", reason="the reference belongs to the export side"
)
# N, K, blocks, tokens a thread: one block to many, more places than tokens, several a thread.
SHAPES = [(1, 1, 1, 1), (2, 2, 8, 1), (33, 33, 2, 1), (300, 40, 3, 4), (577, 60, 8, 2)]
SHAPES += [(1030, 30, 5, 4)]
RACES = 8


def _wrong(
    runner: ManyRunner, gram: Matrix, shape: tuple[int, int, int, int], *methods: str
) -> list[str]:
    """The methods whose order or cover is not the reference's."""
    num_tokens, num_kept, blocks, tokens = shape
    order, cover = divprune.choose_max_min(divprune.Gram(gram), num_kept)
    threads = -(-num_tokens // (32 * blocks * tokens)) * 32
    wrong = []
    for method in methods or runner.methods:
        plan = BlocksLaunch(f"{method}_{tokens}", blocks, threads)
        found = runner.choose(gram, int(order[0]), num_kept, method, plan)
        if found[0] != order.tolist() or not np.array_equal(found[1], cover):
            wrong.append(method)
    return wrong


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_cover_are_the_references(many_runner: ManyRunner, kind: str) -> None:
    for shape in SHAPES:
        assert _wrong(many_runner, matrix(kind, shape[0]), shape) == []


def test_order_is_the_references_for_as_many_tokens_as_it_is_for(many_runner: ManyRunner) -> None:
    rows = np.random.default_rng(3).integers(-2, 3, (MANY_FROM, 3)).astype(np.float32)
    gram, num_kept = rows @ rows.T, 8
    order, _ = divprune.choose_max_min(divprune.Gram(gram), num_kept)
    for method in many_runner.methods:
        plan = plan_blocks(MANY_FROM, num_kept, method)
        found, _ = many_runner.choose(gram, int(order[0]), num_kept, method, plan)
        assert found == order.tolist()


def test_no_token_comes_twice_whatever_the_matrix_holds(many_runner: ManyRunner) -> None:
    expected = [4, *range(4), *range(5, 66)]
    for value in (np.nan, np.inf, -np.inf):
        gram = np.full((66, 66), value, np.float32)
        for method in many_runner.methods:
            plan = plan_blocks(66, 66, method)
            assert many_runner.choose(gram, 4, 66, method, plan)[0] == expected


def test_every_schedule_gives_the_same_order(many_driver: EmulatedManyDriver) -> None:
    runner, gram = ManyRunner(many_driver), matrix("coarse", 577)
    for number in range(RACES):
        many_driver.set_schedule(number)
        assert _wrong(runner, gram, (577, 20, 4, 1)) == []


@pytest.mark.parametrize("lapse", EXCHANGE)
def test_kernel_that_lacks_a_part_fails(lapsing: EmulatedManyDriver, lapse: str) -> None:
    """The tests above notice each of them: the emulator hides no race and no lapse."""
    lapsing.lack(list(LAPSES).index(lapse))
    for number in range(RACES):
        lapsing.set_schedule(number)
        try:
            if _wrong(ManyRunner(lapsing), matrix("coarse", 577), (577, 20, 4, 1)):
                return
        except BackendError:  # blocks wait for each other
            return
    pytest.fail("the kernel still gives the reference's order")


def test_every_plan_has_a_place_for_every_token() -> None:
    for num_tokens in range(1, MAX_TOKENS + 1):
        for blocks in (4, 8):
            plan = plan_blocks(num_tokens, 1, "grid", blocks)
            places = int(plan.entry.rpartition("_")[2]) * plan.threads
            assert plan.threads % 32 == 0
            assert plan.threads <= 1024
            assert places <= 2560
            assert num_tokens <= places * blocks


def test_too_few_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 blocks for 10240 tokens"):
        plan_blocks(MAX_TOKENS, 1, "grid", 2)


def test_counts_that_cannot_be_kept_are_refused() -> None:
    with pytest.raises(OptionError, match="cannot be kept"):
        plan_blocks(9000, 9001, "cluster")


def test_one_block_is_the_default() -> None:
    assert chosen_method({}) == "one"
    assert chosen_method({VARIABLE: "grid"}) == "grid"


def test_unknown_method_is_refused() -> None:
    with pytest.raises(OptionError, match=r"(?s)DIVPRUNE_SELECTION_BLOCKS.*one or cluster or grid"):
        chosen_method({VARIABLE: "many"})


def test_cluster_without_the_hardware_is_refused(many_driver: EmulatedManyDriver) -> None:
    many_driver.set_capability(87)
    try:
        with pytest.raises(UnsupportedError, match=r"(?s)9\.0 or later.*8\.7.*=grid"):
            ManyBlocksKernel(many_driver, "cluster")
    finally:
        many_driver.set_capability(90)


@pytest.mark.parametrize("method", ["grid", "cluster"])
def test_environment_sends_many_tokens_to_several_blocks(
    many_driver: EmulatedManyDriver, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv(VARIABLE, method)
    monkeypatch.setattr(driver_module, "MANY_FROM", 300)
    runner = KernelRunner(many_driver)
    grams = np.stack([matrix("cosines", 300), matrix("coarse", 300)])
    choices = [divprune.choose_max_min(divprune.Gram(gram), 20) for gram in grams]
    before = many_driver.num_launches(f"greedy_{method}_1")
    orders, covers = runner.run(grams, [int(choice.order[0]) for choice in choices], 20)
    assert orders.tolist() == [choice.order.tolist() for choice in choices]
    assert covers.tolist() == [choice.cover.tolist() for choice in choices]
    assert many_driver.num_launches(f"greedy_{method}_1") == before + 2


def test_nothing_changes_without_the_environment(
    emulated_driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(driver_module, "MANY_FROM", 1)
    gram = matrix("coarse", 70)
    expected = divprune.greedy_max_min(gram, 9).tolist()
    assert KernelRunner(emulated_driver).order(gram, expected[0], 9) == expected


def test_fewer_tokens_stay_with_one_block(emulated_driver: EmulatedDriver) -> None:
    gram = matrix("coarse", 300)
    expected = divprune.greedy_max_min(gram, 9).tolist()
    runner = KernelRunner(emulated_driver)
    runner._kernel = GreedyMaxMinKernel(emulated_driver, "grid")
    assert runner.order(gram, expected[0], 9) == expected
