"""The greedy choice by several blocks, for thousands of tokens: ``many_blocks.cu``.

Built, emulated on the host, not yet run on a GPU. ``DIVPRUNE_SELECTION_BLOCKS`` chooses it:

===========  =====================================================================
``one``      one block, the kernel of ``greedy_max_min.cu``; the default
``cluster``  a thread-block cluster, for more than 5120 tokens; compute capability 9.0
``grid``     a cooperative grid, for more than 5120 tokens
===========  =====================================================================
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from divprune.plugins.environment import read_choice
from divprune.plugins.module import Module, Value, compute_capability
from divprune.plugins.node import plan_launch
from divprune.plugins.ptx import CLUSTER, GRID, read_ptx
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from divprune.plugins.driver import Driver

__all__ = [
    "INBOX_BYTES",
    "MANY_FROM",
    "VARIABLE",
    "BlocksLaunch",
    "ManyBlocksKernel",
    "Method",
    "Together",
    "chosen_method",
    "open_module",
    "plan_blocks",
]

Together = Literal["cluster", "grid"]
Method = Literal["one", "cluster", "grid"]
VARIABLE = "DIVPRUNE_SELECTION_BLOCKS"
MANY_FROM = 5121
"""Tokens from which on the variable counts: more than five a thread of one block."""
INBOX_BYTES = 2 * 2 * 32 * 8
"""Messages of a grid: two turns, two kinds, 32 blocks."""
_BLOCKS = 8  # the most that a cluster may have everywhere
_TOKENS_A_THREAD = (1, 2, 4)  # one entry of the PTX for each number
_WARP_THREADS = 32
_MOST_THREADS = 512
_MOST_TOKENS_A_BLOCK = 2560  # of the exact kernels, which keep three numbers of each
_CLUSTERS_FROM = (9, 0)


@dataclass(frozen=True, slots=True)
class BlocksLaunch:
    """How the kernel is launched.

    Attributes:
        entry: Such as ``cluster_2``: behind ``greedy_`` or ``exact_``.
        blocks: How many, all at once.
        threads: Of each block.
    """

    entry: str
    blocks: int
    threads: int


def chosen_method(environment: Mapping[str, str] = os.environ) -> Method:
    """What the environment says.

    Raises:
        OptionError: if it says something else.
    """
    return cast("Method", read_choice(VARIABLE, get_args(Method), environment))


def plan_blocks(
    num_tokens: int, num_kept: int, together: Together, blocks: int = _BLOCKS
) -> BlocksLaunch:
    """The launch for K of N tokens: as few tokens a thread as 512 threads a block allow.

    Raises:
        OptionError: if K is not in 1..N.
        UnsupportedError: if N is not in 1..10 240.
        ValueError: if the blocks are too few.
    """
    plan_launch(num_tokens, num_kept)
    share = -(-num_tokens // blocks)
    fitting = [each for each in _TOKENS_A_THREAD if share <= each * _MOST_THREADS]
    tokens = min(fitting, default=max(_TOKENS_A_THREAD))
    threads = -(-share // (tokens * _WARP_THREADS)) * _WARP_THREADS
    if tokens * threads > _MOST_TOKENS_A_BLOCK:
        raise ValueError(f"{blocks} blocks for {num_tokens} tokens")
    return BlocksLaunch(f"{together}_{tokens}", blocks, threads)


def open_module(driver: Driver, together: Together) -> Module:
    """The kernels in the CUDA context that is current.

    Raises:
        UnsupportedError: if the GPU has no clusters.
        BackendError: if the driver refuses the PTX.
    """
    if together == "grid":
        return Module(driver, read_ptx(GRID.ptx))
    capability = compute_capability(driver)
    if capability < _CLUSTERS_FROM:
        raise UnsupportedError(
            "This GPU has no thread-block clusters",
            expected="compute capability 9.0 or later",
            found="{}.{}".format(*capability),
            fix=f"{VARIABLE}=grid",
        )
    return Module(driver, read_ptx(CLUSTER.ptx))


class ManyBlocksKernel:
    """The kernel, loaded into the CUDA context that is current; errors as ``open_module``."""

    def __init__(self, driver: Driver, together: Together) -> None:
        self._driver = driver
        self._together: Together = together
        self._module = open_module(driver, together)
        self._inboxes: dict[int, int] = {}  # by stream: two streams may run it at once

    def launch(
        self,
        places: tuple[int, int, int, int],
        num_tokens: int,
        num_kept: int,
        stream: int = 0,
        plan: BlocksLaunch | None = None,
    ) -> None:
        """Enqueue the choice of K of N tokens of one image.

        Args:
            places: Device addresses of gram float32 [N, N], seed int32 [1], order int32 [K] and
                cover float32 [K], of which the last two are written.
            num_tokens: N.
            num_kept: K.
            stream: The CUDA stream's handle; 0 is the default stream.
            plan: Instead of that of ``plan_blocks``.
        """
        plan = plan or plan_blocks(num_tokens, num_kept, self._together)
        gram, seed, order, cover = map(ctypes.c_uint64, places)
        counts = ctypes.c_int32(num_tokens), ctypes.c_int32(num_kept)
        values: list[Value] = [gram, seed, *counts, order, cover]
        if self._together == "grid":
            values.append(ctypes.c_uint64(self._empty_inbox(stream)))
        entry = f"greedy_{plan.entry}"
        self._module.launch(entry, plan.blocks, plan.threads, values, stream, self._together)

    def _empty_inbox(self, stream: int) -> int:
        if stream not in self._inboxes:
            address = ctypes.c_uint64()
            self._driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(INBOX_BYTES))
            self._inboxes[stream] = address.value
        place, size = ctypes.c_uint64(self._inboxes[stream]), ctypes.c_size_t(INBOX_BYTES)
        self._driver.call("cuMemsetD8Async", place, 0, size, ctypes.c_void_p(stream))
        return self._inboxes[stream]
