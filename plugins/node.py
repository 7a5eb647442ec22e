"""The ONNX node ``divprune::GreedyMaxMin`` and how the kernel is launched for one.

=========  ==============  ====================================================
name       dtype, shape    meaning
=========  ==============  ====================================================
gram       float32 1,N,N   similarities of the normalised tokens, row by row
seed       int32 1         the token chosen first
order      int32 1,K       the chosen tokens in the order of their choice
=========  ==============  ====================================================

Attributes: ``num_kept`` K (int), ``plugin_namespace``, ``plugin_version`` and, for TensorRT
of 10.9 or later, ``aot`` = 1. N and K are static.
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


def check_shapes(gram: Sequence[int], seed: Sequence[int]) -> tuple[int, int]:
    """The number of images and of tokens, of shapes [images, N, N] and [images].

    Raises:
        UnsupportedError: if the shapes are not static or do not fit together.
    """
    if len(gram) != 3 or gram[1] != gram[2] or list(seed) != [gram[0]] or min(gram) < 1:
        raise UnsupportedError(
            f"The inputs of {OP_TYPE} do not fit",
            expected="gram [images, N, N] and seed [images], static",
            found=f"gram {list(gram)} and seed {list(seed)}",
        )
    return gram[0], gram[1]
