"""A smaller picture instead of fewer tokens: the baseline that pruning has to beat.

Surveys find that most compression methods lose to it. With K tokens asked for, s = floor of
sqrt(K): the picture is made smaller until it has s x s patches, the tower sees only that, and
all its s x s tokens are kept. The two interpolations are linear maps, written as matrices:

- pixels: cubic convolution (a = -0.5) widened by the scale, as Pillow makes pictures smaller,
  on the normalised pixels; in the graph, float32, two ``MatMul``;
- position embeddings: cubic convolution (a = -0.75) without widening, half-pixel centres,
  edges repeated, as transformers interpolates them; once, at export, in float32.

``image_features`` is still the full picture's, in a graph of its own (``vision/full.onnx``)
that is loaded and run only for ``--keep 1.0``. A kept token's index is that of the full-size
patch in which its middle lies; ``--positions original`` gives it that patch's position.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.fixed_order import FixedOrder
from divprune.export.selection.uniform import middles
from divprune.runtime.errors import UnsupportedError

__all__ = ["Downsample", "interpolate_positions", "resize", "write_resize"]


class Downsample(FixedOrder):
    """All tokens of a picture that is as small as the count asks for."""

    name: ClassVar[str] = "downsample"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = False
    merges: ClassVar[bool] = True
    inside_llm: ClassVar[bool] = False

    @property
    def parameters(self) -> dict[str, Any]:
        """How pixels and position embeddings are interpolated."""
        return {"pixels": "cubic -0.5, antialiased", "positions": "cubic -0.75"}

    def count(self, num_tokens: int, asked: int) -> int:
        """The largest square not above ``asked``, inside the grid.

        Raises:
            UnsupportedError: for a tower whose tokens are no grid of patches.
        """
        if self.setting.patch_size is not None and self.setting.grid is None:
            raise UnsupportedError(
                f"--selector {self.name} needs a token for every patch of the picture",
                expected="vision_feature_select_strategy full for a tower without class token",
                found=f"{num_tokens} tokens, fewer than there are patches",
                fix="--selector divprune",
            )
        rows, columns, _ = self.patch_grid(num_tokens)
        return min(isqrt(asked), rows, columns) ** 2

    def pass_size(self, num_kept: int) -> tuple[int, int] | None:
        """Pixels of s x s patches."""
        side = isqrt(num_kept) * (self.setting.patch_size or 1)
        return side, side

    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        """The patch of the full picture in which each kept one's middle lies; ascending."""
        rows, columns, leading = self.patch_grid(num_tokens)
        side = isqrt(num_kept)
        vertical, horizontal = middles(rows, side), middles(columns, side)
        return leading + np.add.outer(vertical * columns, horizontal).reshape(-1)


def resize(pixels: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """The reference: float32 [1, 3, H, W] to [1, 3, h, w], antialiased cubic."""
    vertical, horizontal = _pixel_maps(pixels.shape[2:], size)
    return np.asarray(vertical @ pixels @ horizontal.T, np.float32)


def write_resize(
    op: GraphWriter, pixels: ir.Value, full: tuple[int, int], size: tuple[int, int]
) -> ir.Value:
    """The same as two nodes: each row and each column of the result is a weighted sum."""
    vertical, horizontal = _pixel_maps(full, size)
    with op.scope("resize"):
        rows = op("MatMul", op.constant(vertical, "vertical"), pixels)
        return op("MatMul", rows, op.constant(np.ascontiguousarray(horizontal.T), "horizontal"))


def interpolate_positions(
    table: npt.NDArray[np.float32], grid: tuple[int, int], size: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Position embeddings [leading + R C, E] of a grid R x C for one of r x c patches.

    Rows before the grid (a class token's) stay as they are.
    """
    leading = len(table) - grid[0] * grid[1]
    patches = table[leading:].reshape(*grid, -1)
    vertical, horizontal = (
        _cubic_map(old, new, sharpness=-0.75, widen=False)
        for old, new in zip(grid, size, strict=True)
    )
    smaller = np.einsum("iy,jx,yxe->ije", vertical, horizontal, patches)
    return np.concatenate([table[:leading], smaller.reshape(-1, table.shape[1])]).astype(np.float32)


def _pixel_maps(
    full: tuple[int, ...], size: tuple[int, int]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    vertical, horizontal = (
        _cubic_map(old, new, sharpness=-0.5, widen=True).astype(np.float32)
        for old, new in zip(full, size, strict=True)
    )
    return vertical, horizontal


def _cubic_map(old: int, new: int, *, sharpness: float, widen: bool) -> npt.NDArray[np.float64]:
    """Weights [new, old] of cubic convolution, half-pixel centres.

    ``widen``: the kernel grows with the scale and stops at the edge (antialiasing, as Pillow);
    otherwise it spans four places, and those beyond the edge count for the edge.
    """
    scale = old / new
    width = max(scale, 1.0) if widen else 1.0
    centres = (np.arange(new) + 0.5) * scale - 0.5
    places = np.arange(-4, old + 4)
    weights = _cubic((places - centres[:, np.newaxis]) / width, sharpness)
    if widen:
        inside = weights[:, 4 : 4 + old]
        normalised: npt.NDArray[np.float64] = inside / inside.sum(axis=1, keepdims=True)
        return normalised
    clamped = np.zeros((new, old))
    for place, column in zip(places.clip(0, old - 1), weights.T, strict=True):
        clamped[:, place] += column
    return clamped


def _cubic(distance: npt.NDArray[np.float64], a: float) -> npt.NDArray[np.float64]:
    """Cubic convolution (Keys, 1981) at these distances."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
