"""A quantised linear layer: what it is known to be before its numbers are computed.

The numbers come when the graph is saved. A graph stores them in several tensors (codes, scales,
zero points) that are written one after the other; the numbers of the latest matrix are kept
until another one is asked for, so that each is computed once and only one is in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from divprune.export.checkpoint.quantization.packing import unpack_nibbles
from divprune.runtime.directory.quant_scheme import QuantScheme

__all__ = ["Int4Numbers", "Int8Numbers", "QuantizedMatrix"]


@dataclass(frozen=True, slots=True)
class Int4Numbers:
    """weight = scale · (code - zero), by groups of inputs.

    ``packed``: codes 0..15, uint8 [out, in / 2], the even input in the low half. ``scales``:
    float16 or float32 [out, groups]. ``zeros``: uint8 [out, groups], 0..16 (GPTQ can have 16),
    or None where all are 8.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.floating]
    zeros: NDArray[np.uint8] | None

    def rows(self, part: slice) -> Int4Numbers:
        """Those of some outputs."""
        zeros = None if self.zeros is None else self.zeros[part]
        return Int4Numbers(self.packed[part], self.scales[part], zeros)

    def dequantize(self) -> NDArray[np.float32]:
        """The weight [out, in] that these numbers stand for."""
        rows, groups = self.scales.shape
        steps = unpack_nibbles(self.packed).reshape(rows, groups, -1).astype(np.float32)
        steps -= 8 if self.zeros is None else self.zeros[..., None].astype(np.float32)
        steps *= self.scales[..., None].astype(np.float32)
        return steps.reshape(rows, -1)


@dataclass(frozen=True, slots=True)
class Int8Numbers:
    """weight = scale · value: ``values`` int8 [out, in], ``scales`` float32 [out]."""

    values: NDArray[np.int8]
    scales: NDArray[np.float32]

    def rows(self, part: slice) -> Int8Numbers:
        """Those of some outputs."""
        return Int8Numbers(self.values[part], self.scales[part])

    def dequantize(self) -> NDArray[np.float32]:
        """The weight [out, in] that these numbers stand for."""
        weight: NDArray[np.float32] = self.values * self.scales[:, None]
        return weight


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """The weight [out, in] of a linear layer.

    ``read`` returns the kind of numbers that the scheme has. ``max_zero`` is the largest zero
    point there can be, which decides how they are stored.
    """

    name: str
    shape: tuple[int, int]
    scheme: QuantScheme
    read: Callable[[], Int4Numbers | Int8Numbers]
    max_zero: int

    @property
    def groups(self) -> int:
        """Groups of inputs in a row."""
        return self.shape[1] // (self.scheme.block or self.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes in a graph, at most: codes, and four for the scale and one for the zero point."""
        rows, inputs = self.shape
        return rows * inputs * self.scheme.bits // 8 + 5 * rows * self.groups

    def split(self, count: int) -> list[QuantizedMatrix]:
        """As ``count`` matrices of about as many outputs each, named ``.0``, ``.1`` and so on."""
        if count == 1:
            return [self]
        ends = [self.shape[0] * part // count for part in range(count + 1)]
        return [self._part(i, slice(*ends[i : i + 2])) for i in range(count)]

    def _part(self, index: int, rows: slice) -> QuantizedMatrix:
        return replace(
            self,
            name=f"{self.name}.{index}",
            shape=(rows.stop - rows.start, self.shape[1]),
            read=lambda: self.read().rows(rows),
        )

    def int4(self) -> Int4Numbers:
        """The numbers of a 4-bit matrix."""
        numbers = self.read()
        assert isinstance(numbers, Int4Numbers)
        return numbers

    def int8(self) -> Int8Numbers:
        """The numbers of an 8-bit matrix."""
        numbers = self.read()
        assert isinstance(numbers, Int8Numbers)
        return numbers
