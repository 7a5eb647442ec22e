"""The ONNX node ``divprune::GreedyMaxMin`` and how the kernel is launched for one.

=========  ==============  ====================================================
name       dtype, shape    meaning
=========  ==============  ====================================================
gram       float32 1,N,N   similarities of the normalised tokens, row by row
seed       int32 1,K       the token chosen first, K times: its length says K
order      int32 1,K       the chosen tokens in the order of their choice
cover      float32 1,K     after each choice the least similarity that a token which
                           is left has to its nearest chosen one; 1 if none is left
=========  ==============  ====================================================

Attributes: ``max_tokens`` (int), the largest N; ``plugin_namespace``, ``plugin_version`` and,
for TensorRT of 10.9 or later, ``aot`` = 1. N and K may vary: both are told by shapes. K is no
attribute, because a quickly-deployable plugin cannot do without one that it declares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from divprune.runtime.errors import OptionError, UnsupportedError

__all__ = ["MAX_TOKENS", "NAMESPACE", "OP_TYPE", "VERSION", "Launch", "check_shapes", "plan_launch"]

OP_TYPE = "GreedyMaxMin"
NAMESPACE = "divprune"
VERSION = "1"

_WARP_THREADS = 32
_MAX_THREADS = 1024
_MAX_TOKENS_A_THREAD = 10  # one entry of the PTX for each number
MAX_TOKENS = _MAX_THREADS * _MAX_TOKENS_A_THREAD


@dataclass(frozen=True, slots=True)
class Launch:
    """Which entry of the PTX runs, with how many threads in its one block an image."""

    entry: str
    threads: int


def plan_launch(num_tokens: int, num_kept: int) -> Launch:
    """The launch for K of N tokens: as few tokens a thread as 1024 threads allow.

    It serves fewer tokens too: threads without one take no part.

    Raises:
        OptionError: if K is not in 1..N.
        UnsupportedError: if N is not in 1..10 240.
    """
    if not 1 <= num_tokens <= MAX_TOKENS:
        raise UnsupportedError(
            "The selection kernel cannot hold that many visual tokens",
            expected=f"1 to {MAX_TOKENS}",
            found=num_tokens,
            fix="build from vision/model.onnx, which selects with an ONNX Loop",
        )
    if not 1 <= num_kept <= num_tokens:
        raise OptionError(
            "That many visual tokens cannot be kept", expected=f"1 to {num_tokens}", found=num_kept
        )
    tokens_a_thread = -(-num_tokens // _MAX_THREADS)
    warps = -(-num_tokens // (tokens_a_thread * _WARP_THREADS))
    return Launch(f"greedy_max_min_{tokens_a_thread}", warps * _WARP_THREADS)


def check_shapes(
    gram: Sequence[int], seed: Sequence[int], max_tokens: int = MAX_TOKENS
) -> tuple[int, int, int]:
    """The number of images, N and K, of shapes [images, N, N] and [images, K].

    Raises:
        OptionError: if K is not in 1..N.
        UnsupportedError: if the shapes do not fit together, or N is above ``max_tokens``.
    """
    fits = len(gram) == 3 and len(seed) == 2 and gram[1] == gram[2] and gram[0] == seed[0]
    if not fits or min(*gram, *seed) < 1 or gram[1] > max_tokens:
        raise UnsupportedError(
            f"The inputs of {OP_TYPE} do not fit",
            expected=f"gram [images, N, N] and seed [images, K], N at most {max_tokens}",
            found=f"gram {list(gram)} and seed {list(seed)}",
        )
    plan_launch(gram[1], seed[1])
    return gram[0], gram[1], seed[1]
