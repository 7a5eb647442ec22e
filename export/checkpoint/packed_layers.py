"""The packed linear layers of an AWQ or GPTQ checkpoint, each under its weight's name.

``X.qweight``, ``X.qzeros``, ``X.scales`` and (GPTQ) ``X.g_idx`` are the weight ``X.weight``. Codes
stay codes on their way to a graph; everything about them that a graph depends on before it is
saved is read first: shapes from the headers, and the zero points, a 256th of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune.export.checkpoint.quantization.matrix import Int4Numbers
from divprune.export.checkpoint.quantization.packed_format import PackedFormat
from divprune.runtime.directory.quant_scheme import QuantScheme, check_divisible
from divprune.runtime.errors import CheckpointError, UnsupportedError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["PACKED_SUFFIXES", "PackedLayer", "find_packed_layers"]

PACKED_SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx")
_FIX = "download the checkpoint again, or correct group_size in config.json"

Read = Callable[[str], "torch.Tensor"]
Stored = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type (as safetensors spells it) and shape of each stored tensor."""


@dataclass(frozen=True, slots=True)
class PackedLayer:
    """A weight [out, in]: ``max_zero`` is its largest zero point; symmetric: all of them are 8."""

    name: str
    shape: tuple[int, int]
    format: PackedFormat
    symmetric: bool
    max_zero: int

    @property
    def scheme(self) -> QuantScheme:
        """As ``--quant`` would spell it."""
        return QuantScheme(4, self.format.block, self.symmetric)

    def scales(self, read: Read) -> torch.Tensor:
        """Scales [groups, out] in the stored type."""
        return read(f"{self.name}.scales")

    def numbers(self, read: Read, scale_dtype: np.dtype) -> Int4Numbers:
        """Codes, scales and zero points; ``read`` returns a stored tensor."""
        codes = self.format.codes(read(f"{self.name}.qweight").numpy())
        scales = np.ascontiguousarray(self.scales(read).float().numpy().T).astype(scale_dtype)
        zeros = None if self.symmetric else _zeros(self.name, self.format, read)
        return Int4Numbers(codes, scales, zeros)


def find_packed_layers(stored: Stored, format_: PackedFormat, read: Read) -> dict[str, PackedLayer]:
    """Packed layers by the name of their weight (``X.weight``).

    Raises:
        CheckpointError: if the tensors of a layer are missing, of other types or of shapes that
            do not fit each other, or if the group size does not divide the inputs.
        UnsupportedError: if inputs are reordered (act-order).
    """
    names = [key.removesuffix(".qweight") for key in stored if key.endswith(".qweight")]
    if not names:
        raise CheckpointError(
            f"config.json says {format_.method}, but no weight is packed",
            expected="tensors that end in .qweight, .qzeros and .scales",
            fix="download the checkpoint again, or remove quantization_config",
        )
    return {f"{name}.weight": _layer(name, stored, format_, read) for name in names}


def _layer(name: str, stored: Stored, format_: PackedFormat, read: Read) -> PackedLayer:
    outputs, inputs = _check_parts(name, stored, format_)
    if f"{name}.g_idx" in stored:
        order = read(f"{name}.g_idx").numpy()
        if not np.array_equal(order, np.arange(inputs) // format_.block):
            raise UnsupportedError(
                f"the inputs of {name} are reordered (act-order, desc_act)",
                expected=f"g_idx with {format_.block} inputs a group, in their order",
                found="another g_idx",
                fix="use a checkpoint quantised with desc_act false, or --quant int4 on the "
                "model that was quantised",
            )
    zeros = _zeros(name, format_, read)
    return PackedLayer(name, (outputs, inputs), format_, bool((zeros == 8).all()), int(zeros.max()))


def _check_parts(name: str, stored: Stored, format_: PackedFormat) -> tuple[int, int]:
    """Shape [out, in] of a layer whose tensors fit each other."""
    qweight = stored[f"{name}.qweight"][1]
    if len(qweight) != 2 or 0 in qweight:
        raise CheckpointError(
            f"{name}.qweight is no matrix", expected="two dimensions", found=list(qweight)
        )
    outputs, inputs = format_.shape(qweight)
    check_divisible(name, inputs, format_.block, fix=_FIX)
    groups = inputs // format_.block
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "qweight": ("I32", qweight),
        "qzeros": ("I32", (groups, outputs // 8)),
        "scales": ("a float", (groups, outputs)),
    }
    if f"{name}.g_idx" in stored:
        expected["g_idx"] = ("I32", (inputs,))
    for part, (dtype, shape) in expected.items():
        found = stored.get(f"{name}.{part}")
        integers = dtype == "I32"
        if found is None or found[1] != shape or (found[0] == "I32") != integers:
            raise CheckpointError(
                f"{name}.{part} does not fit {format_.method} in groups of {format_.block}",
                expected=f"{dtype} {list(shape)}, beside qweight {list(qweight)}",
                found="none" if found is None else f"{found[0]} {list(found[1])}",
                fix=_FIX,
            )
    return outputs, inputs


def _zeros(name: str, format_: PackedFormat, read: Read) -> NDArray[np.uint8]:
    stored = format_.zeros(read(f"{name}.qzeros").numpy())
    return stored + np.uint8(format_.zero_offset)
