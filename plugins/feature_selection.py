"""DivPrune from float16 features with the similarities on tensor cores: ``half_gram.cu``.

Built, emulated on the host, not yet run on a GPU. ``DIVPRUNE_SIMILARITIES=float16`` chooses it for
ONNX Runtime on CUDA; ``float32`` is the default.

The order and the cover are those of the greedy rule for the similarities of ``exact_similarity``,
always: the matrix is within ``error_bound`` of them, and where that leaves the next token open,
the similarities that decide are computed.

A token's largest similarity to the chosen ones then lies in [low, low + 2 bound]. The next token
has the least; only tokens whose low is not above the upper end of the least interval can have it.
If that is one token, it is next. Otherwise the similarities of those tokens to the chosen ones are
computed where they may be the largest, after which low is exact for all that count.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from divprune.plugins.many_blocks import (
    INBOX_BYTES,
    BlocksLaunch,
    Together,
    open_module,
    plan_blocks,
)
from divprune.plugins.module import Module, Value
from divprune.plugins.ptx import HALF_GRAM, read_ptx
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from divprune.plugins.driver import Driver

__all__ = [
    "SIMILARITIES",
    "FeatureSelection",
    "Workspace",
    "error_bound",
    "exact_similarity",
    "plan_workspace",
]

SIMILARITIES = "DIVPRUNE_SIMILARITIES"
"""The variable: ``float32``, the default, or ``float16``."""
_MIN_NORM = 1e-12
_CHUNK = 32  # features that tensor cores sum
_UNIT = 2.0**-23
_TILE = 128
_TILES_BESIDE = 8
_GRAM_THREADS = 256
_THREADS = 256
_ROWS_A_BLOCK = _THREADS // 32
_MOST_NUMBERS = 2**31
_ALIGNMENT = 256


def error_bound(width: int) -> float:
    """How far a number of the matrix may be from the similarity, for features [N, width].

    In units of 2^-23, relative to the product of two norms, which bounds the sum of the products'
    sizes (Cauchy and Schwarz):

    - 48: two instructions of 16 products a chunk. Each is taken to be off by at most 24 units of
      the sum of the sizes of what it adds: 17 numbers cut off 23 bits below the largest, in steps
      of at least four products. Tensor cores that were measured keep 23 bits or more
      (arXiv:2512.07004); the instruction's description promises single precision.
    - width / 64: the chunks' sums are added in float32, with half a unit for each addition.
    - 4: the inverse norms, the products with them, the similarity's own rounding, and the kernels'
      additions of the bound itself.

    One per cent more covers products of these errors.
    """
    return 1.01 * (48 + width / 64 + 4) * _UNIT


def exact_similarity(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """The similarities float32 [N, N] that the kernels decide by, of features [N, width].

    The cosine in float64, rounded; products of float16 are exact. Sums are taken in the kernels'
    order, so that the last bit is theirs too.
    """
    wide = features.astype(np.float64)
    wide = np.pad(wide, [(0, 0), (0, -wide.shape[1] % 256)])
    lanes = wide.reshape(len(wide), -1, 32, 8).transpose(2, 1, 3, 0).reshape(32, -1, len(wide))
    sums = np.zeros((32, len(wide), len(wide)))
    for lane, own in enumerate(lanes):
        for row in own:
            sums[lane] += np.multiply.outer(row, row)
    for apart in (16, 8, 4, 2, 1):
        sums = sums[:apart] + sums[apart : 2 * apart]
    norms = np.maximum(np.sqrt(np.diagonal(sums[0])), _MIN_NORM)
    similarities: npt.NDArray[np.float32] = (sums[0] / np.multiply.outer(norms, norms)).astype(
        np.float32
    )
    return similarities


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where what the kernels hand on lies, as offsets in bytes.

    Attributes:
        norms: float64 [N].
        inverse: Of the norms, float32 [N].
        gram: float32 [N, N].
        nearest: float32 [N], each row's largest beside the diagonal.
        seed: uint64, whose lower half is the first token.
        least: uint32, of ``nearest``.
        inbox: Messages of a grid.
        chosen: int32 [K + 1].
        num_bytes: Of all.
    """

    norms: int
    inverse: int
    gram: int
    nearest: int
    seed: int
    least: int
    inbox: int
    chosen: int
    num_bytes: int


def plan_workspace(num_tokens: int, num_kept: int) -> Workspace:
    """For K of N tokens; its address has to be a multiple of 256."""
    sizes = [8 * num_tokens, 4 * num_tokens, 4 * num_tokens**2, 4 * num_tokens]
    sizes += [8, 4, INBOX_BYTES, 4 * (num_kept + 1)]
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    return Workspace(*offsets)


class FeatureSelection:
    """The kernels, loaded into the CUDA context that is current.

    Args:
        driver: Of CUDA.
        together: How the greedy kernel's blocks run.

    Raises:
        UnsupportedError: if the GPU has no clusters and ``together`` asks for one.
        BackendError: if the driver refuses the PTX.
    """

    def __init__(self, driver: Driver, together: Together) -> None:
        self._driver = driver
        self._together: Together = together
        self._gram = Module(driver, read_ptx(HALF_GRAM.ptx))
        self._greedy = open_module(driver, together)

    def launch(
        self,
        features: int,
        order: int,
        cover: int,
        workspace: int,
        *,
        num_tokens: int,
        width: int,
        num_kept: int,
        stream: int = 0,
        plan: BlocksLaunch | None = None,
    ) -> None:
        """Enqueue the choice of K of N tokens of one image.

        Args:
            features: Device address of float16 [N, width], finite, a multiple of 16.
            order: Device address of int32 [K], which is written.
            cover: Device address of float32 [K], which is written.
            workspace: Device address of ``plan_workspace(N, K).num_bytes`` bytes.
            num_tokens: N.
            width: A multiple of 32.
            num_kept: K.
            stream: The CUDA stream's handle; 0 is the default stream.
            plan: Of the greedy kernel, instead of that of ``plan_blocks``.

        Raises:
            OptionError: if K is not in 1..N.
            UnsupportedError: if N is not in 1..10 240, or the width is not a multiple of 32.
        """
        plan = plan or plan_blocks(num_tokens, num_kept, self._together)
        if width < 1 or width % _CHUNK or num_tokens * width >= _MOST_NUMBERS:
            raise UnsupportedError(
                "The similarities of such features are not computed on tensor cores",
                expected="a width that is a multiple of 32, and fewer than 2^31 numbers",
                found=f"[{num_tokens}, {width}]",
                fix=f"{SIMILARITIES}=float32",
            )
        space = plan_workspace(num_tokens, num_kept)
        run = _Run(self._driver, workspace, space, features, num_tokens, width, stream)
        self._similarities(run)
        self._order(run, plan, num_kept)
        self._cover(run, num_kept, order, cover)

    def _similarities(self, run: _Run) -> None:
        tokens = ctypes.c_int32(run.num_tokens)
        shape = tokens, ctypes.c_int32(run.width)
        rows = ctypes.c_uint64(run.features)
        norms, inverse, gram, nearest, least = run.at(
            "norms", "inverse", "gram", "nearest", "least"
        )
        blocks = -(-run.num_tokens // _ROWS_A_BLOCK)
        values: list[Value] = [rows, *shape, norms, inverse]
        self._gram.launch("row_norms", blocks, _THREADS, values, run.stream)
        values = [rows, inverse, *shape, gram]
        self._gram.launch(
            "half_gram", _gram_blocks(run.num_tokens), _GRAM_THREADS, values, run.stream
        )
        run.fill("seed", "inbox", 0xFF)  # and what lies between: the least so far
        values = [gram, tokens, nearest, least]
        self._gram.launch("nearest_rows", run.num_tokens, _THREADS, values, run.stream)

    def _order(self, run: _Run, plan: BlocksLaunch, num_kept: int) -> None:
        gram, norms, nearest, least = run.at("gram", "norms", "nearest", "least")
        seed, inbox, chosen = run.at("seed", "inbox", "chosen")
        rows, tokens = ctypes.c_uint64(run.features), ctypes.c_int32(run.num_tokens)
        width, bound = ctypes.c_int32(run.width), ctypes.c_float(run.bound)
        values: list[Value] = [gram, rows, norms, tokens, width, bound, nearest, least, seed]
        self._gram.launch("exact_seed", run.num_tokens, _THREADS, values, run.stream)
        kept = ctypes.c_int32(num_kept)
        values = [gram, rows, norms, width, bound, seed, tokens, kept, chosen]
        if self._together == "grid":
            run.fill("inbox", "chosen", 0)
            values.append(inbox)
        entry = f"exact_{plan.entry}"
        self._greedy.launch(entry, plan.blocks, plan.threads, values, run.stream, self._together)

    def _cover(self, run: _Run, num_kept: int, order: int, cover: int) -> None:
        gram, norms, chosen = run.at("gram", "norms", "chosen")
        rows, tokens = ctypes.c_uint64(run.features), ctypes.c_int32(run.num_tokens)
        width, bound = ctypes.c_int32(run.width), ctypes.c_float(run.bound)
        outputs = chosen, ctypes.c_uint64(order), ctypes.c_uint64(cover)
        values: list[Value] = [gram, rows, norms, tokens, width, bound]
        values += [ctypes.c_int32(num_kept), *outputs]
        blocks = -(-num_kept // _ROWS_A_BLOCK)
        self._gram.launch("exact_cover", blocks, _THREADS, values, run.stream)


@dataclass(frozen=True)
class _Run:
    """One launch's memory and sizes."""

    driver: Driver
    workspace: int
    space: Workspace
    features: int
    num_tokens: int
    width: int
    stream: int

    @property
    def bound(self) -> float:
        """Of the matrix' errors, as float32 not below."""
        bound = np.float32(error_bound(self.width))
        return float(bound if bound >= error_bound(self.width) else np.nextafter(bound, np.inf))

    def at(self, *names: str) -> list[ctypes.c_uint64]:
        """Device addresses of parts of the workspace."""
        return [ctypes.c_uint64(self.workspace + getattr(self.space, name)) for name in names]

    def fill(self, first: str, end: str, byte: int) -> None:
        """Set the bytes from one part up to another."""
        start, stop = (getattr(self.space, name) for name in (first, end))
        place, size = ctypes.c_uint64(self.workspace + start), ctypes.c_size_t(stop - start)
        self.driver.call("cuMemsetD8Async", place, byte, size, ctypes.c_void_p(self.stream))


def _gram_blocks(num_tokens: int) -> int:
    """Whole groups of eight rows of tiles; those below the diagonal end at once."""
    tiles = math.ceil(num_tokens / _TILE)
    return math.ceil(tiles / _TILES_BESIDE) * _TILES_BESIDE * tiles
