"""Checkpoint tensors as graph initializers, read and converted only when they are written."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from divprune.export.checkpoint.quantization.matrix import Int4Numbers, Int8Numbers, QuantizedMatrix
from divprune.export.checkpoint.quantization.quantize import quantize
from divprune.export.graphs.writer import GraphWriter
from divprune.runtime.directory.quant_scheme import INT8, QuantScheme, check_divisible
from divprune.runtime.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from divprune.export.checkpoint.checkpoint import Checkpoint
    from divprune.export.checkpoint.packed_layers import PackedLayer

__all__ = ["DTYPES", "WeightSource"]

DTYPES = {"fp16": ir.DataType.FLOAT16, "fp32": ir.DataType.FLOAT}
_FP16_MAX = 65504.0


class WeightSource:
    """The tensors of a checkpoint in the dtype of the export.

    Remembers which were used, so that a tensor the graph does not know becomes an error and
    not a wrong result. With a ``scheme``, the decoder's linear layers are quantised by
    ``method`` (``export/checkpoint/quantization``); those of a quantised checkpoint keep their
    numbers.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        *,
        max_bytes: int | None = None,
        scheme: QuantScheme | None = None,
        method: str = "rtn",
    ) -> None:
        self._checkpoint = checkpoint
        self._shapes = shapes
        self._max_bytes = max_bytes
        self.dtype = DTYPES[dtype]
        self._scheme, self._method = scheme, method
        self._used: set[str] = set()
        self._latest: tuple[str, Int4Numbers | Int8Numbers] | None = None
        self._block_scheme: QuantScheme | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def canonical_name(self, key: str) -> str:
        """The one name of a tensor or of a parameter of the family's modules."""
        return self._checkpoint.family.canonical_name(key)

    def in_int8(self) -> WeightSource:
        """The same tensors with the linear layers of the decoder's blocks in 8 bits.

        Those of a quantised checkpoint are rounded again, from what their numbers stand for. The
        output layer stays as it is: for one row 4 bits are as fast and half the size.
        """
        other = copy.copy(self)  # what it uses counts as used here
        other._block_scheme, other._latest = INT8, None
        return other

    def size(self, name: str) -> int:
        """Number of values of a tensor."""
        return math.prod(self._shapes[name])

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor in a graph, quantised or not."""
        if self.is_quantized(name):
            return self._matrix_of_numbers(name).nbytes
        return int(self.size(name) * self.dtype.itemsize)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, as it is stored."""
        return self._shapes[name]

    def vector(self, op: GraphWriter, name: str) -> ir.Value:
        """A tensor as it is stored."""
        return op.weight(name, self.dtype, self._take(name), lambda: self.read(name))

    def matrices(self, op: GraphWriter, name: str) -> list[ir.Value]:
        """A linear layer's weight [out, in] as the [in, out] that MatMul takes.

        One value, or several side by side where it would be larger than ``max_bytes``.
        """
        rows, columns = self._take(name)
        parts = self._count_parts(rows, rows * columns * self.dtype.bitwidth // 8)
        ends = [rows * (part + 1) // parts for part in range(parts)]
        return [
            self._matrix(op, name if parts == 1 else f"{name}.{part}", name, (start, end), columns)
            for part, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
        ]

    def _matrix(
        self, op: GraphWriter, label: str, name: str, rows: tuple[int, int], columns: int
    ) -> ir.Value:
        start, end = rows
        return op.weight(
            label,
            self.dtype,
            (columns, end - start),
            lambda: np.ascontiguousarray(self.read(name)[start:end].T),
        )

    def _count_parts(self, rows: int, num_bytes: int) -> int:
        """How many parts of whole rows stay below the limit; a row is never cut."""
        if self._max_bytes is None:
            return 1
        fitting = max(1, rows * self._max_bytes // num_bytes)
        return -(-rows // fitting)

    def is_quantized(self, name: str) -> bool:
        """Whether a tensor is a linear layer's weight of the decoder that is quantised."""
        if not name.startswith(("language_model.", "lm_head.")):
            return False
        if self._checkpoint.packed(name) is not None:
            return True
        scheme = self._scheme or self._scheme_in_block(name)
        return scheme is not None and len(self._shapes[name]) == 2

    def _scheme_in_block(self, name: str) -> QuantScheme | None:
        return self._block_scheme if name.startswith("language_model.layers.") else None

    def quantized(self, name: str) -> list[QuantizedMatrix]:
        """The numbers of such a weight: one matrix, or several of fewer outputs each.

        Raises:
            CheckpointError: if the scheme's groups do not divide the inputs.
        """
        matrix = self._matrix_of_numbers(name)
        return matrix.split(self._count_parts(matrix.shape[0], matrix.nbytes))

    def int8(self, name: str) -> QuantizedMatrix:
        """Any linear layer's weight with one scale an output."""
        return self._quantize_as(name, INT8)

    def reference(self, name: str) -> torch.Tensor:
        """The float32 that the graphs' numbers stand for: quantised and back, if they are."""
        import torch

        if not self.is_quantized(name):
            return self._checkpoint.read(name).float()
        return torch.from_numpy(self._matrix_of_numbers(name).read().dequantize())

    def _matrix_of_numbers(self, name: str) -> QuantizedMatrix:
        if (scheme := self._scheme_in_block(name)) is not None:
            return self._quantize_as(name, scheme)
        layer = self._checkpoint.packed(name)
        if layer is not None:
            return QuantizedMatrix(
                name, layer.shape, layer.scheme, lambda: self._packed(layer, name), layer.max_zero
            )
        assert self._scheme is not None
        return self._quantize_as(name, self._scheme)

    def _quantize_as(self, name: str, scheme: QuantScheme) -> QuantizedMatrix:
        rows, inputs = self._shapes[name]
        check_divisible(name, inputs, scheme.block)
        return QuantizedMatrix(
            name, (rows, inputs), scheme, lambda: self._numbers(name, scheme), max_zero=15
        )

    def _numbers(self, name: str, scheme: QuantScheme) -> Int4Numbers | Int8Numbers:
        """A graph stores them in pieces: those of the matrix asked for last are kept."""
        if self._latest is None or self._latest[0] != name:
            self._latest = None
            self._used.add(name)
            tensor = self._checkpoint.read(name)
            check_range(name, tensor, self.dtype)
            self._latest = name, quantize(tensor, scheme, self._method, self.dtype.numpy())
        return self._latest[1]

    def _packed(self, layer: PackedLayer, name: str) -> Int4Numbers | Int8Numbers:
        """Those of a checkpoint that is quantised, likewise."""
        if self._latest is None or self._latest[0] != name:
            self._latest = None
            self._used.add(name)
            read = self._checkpoint.read
            check_range(f"{layer.name}.scales", layer.scales(read), self.dtype)
            self._latest = name, layer.numbers(read, self.dtype.numpy())
        return self._latest[1]

    def lazy(self, name: str, *, transpose: bool = False) -> ir.LazyTensor:
        """A tensor for a graph that already has its initializers (a traced one)."""
        shape = self._take(name)

        def make() -> ir.TensorProtocol:
            array = self.read(name)
            return ir.tensor(np.ascontiguousarray(array.T) if transpose else array)

        return ir.LazyTensor(
            make,
            dtype=self.dtype,
            shape=ir.Shape(shape[::-1] if transpose else shape),
            name=name,
        )

    def read(self, name: str) -> np.ndarray:
        """A tensor as NumPy array in the export's dtype.

        Raises:
            CheckpointError: if it holds NaN or Inf, or numbers that fp16 cannot hold.
        """
        self._used.add(name)
        tensor = self._checkpoint.read(name)
        check_range(name, tensor, self.dtype)
        return tensor.to(_torch_dtype(self.dtype)).numpy()

    def unused(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that nothing has asked for."""
        return sorted(set(names) - self._used)

    def _take(self, name: str) -> tuple[int, ...]:
        self._used.add(name)
        return self._shapes[name]


def check_range(name: str, tensor: torch.Tensor, dtype: ir.DataType) -> None:
    """Refuse a weight that would become Inf in ``dtype``, or is NaN or Inf already."""
    if tensor.numel() == 0:
        return
    low, high = (float(bound) for bound in tensor.aminmax())
    largest = max(abs(low), abs(high))
    if not np.isfinite(largest):
        raise CheckpointError(
            f"{name} holds NaN or Inf",
            expected="finite weights",
            fix="download the checkpoint again",
        )
    if dtype == ir.DataType.FLOAT16 and largest > _FP16_MAX:
        raise CheckpointError(
            f"{name} overflows fp16",
            expected=f"magnitudes up to {_FP16_MAX:g}",
            found=f"{largest:g} (stored as {str(tensor.dtype).removeprefix('torch.')})",
            fix="--dtype fp32",
        )


def _torch_dtype(dtype: ir.DataType) -> torch.dtype:
    import torch

    return torch.float16 if dtype == ir.DataType.FLOAT16 else torch.float32
