"""Read ``quantization_config`` of checkpoints that are quantised already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from divprune.export.checkpoint.quantization.awq import awq_codes, awq_shape, awq_zeros
from divprune.export.checkpoint.quantization.gptq import gptq_codes, gptq_shape, gptq_zeros
from divprune.runtime.directory.quant_scheme import BLOCKS
from divprune.runtime.errors import CheckpointError, UnsupportedError

__all__ = ["PackedFormat", "read_packed_format"]

_KEYS = ("quantization_config", "quantization", "compression_config")
_FIX = "export the model that was quantised, with --quant int4"


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """The packing of the linear layers of an AWQ or GPTQ checkpoint.

    ``block`` inputs share a scale and a zero point; stored zero points are ``zero_offset`` too
    small. ``shape``, ``codes`` and ``zeros`` are the functions of the format's module.
    """

    method: str
    block: int
    zero_offset: int
    shape: Callable[[tuple[int, ...]], tuple[int, int]]
    codes: Callable[[NDArray[np.int32]], NDArray[np.uint8]]
    zeros: Callable[[NDArray[np.int32]], NDArray[np.uint8]]


def read_packed_format(content: Mapping[str, Any]) -> PackedFormat | None:
    """The format that config.json (its ``content``) names; None for weights in float.

    Raises:
        UnsupportedError: for another method, bit width, group size or variant, by its name.
    """
    config = _find_config(content)
    if config is None:
        return None
    method = str(config.get("quant_method", "unnamed method"))
    if method not in ("awq", "gptq"):
        raise _unsupported(method, "method", "awq or gptq", method)
    if config.get("bits") != 4:
        raise _unsupported(method, "bit width", "4", config.get("bits"))
    block = config.get("group_size")
    if block not in BLOCKS:
        raise _unsupported(method, "group size", "one of " + ", ".join(map(str, BLOCKS)), block)
    if method == "awq":
        _check_awq(config)
        return PackedFormat(method, block, 0, awq_shape, awq_codes, awq_zeros)
    variant = str(config.get("checkpoint_format") or "gptq")
    if variant not in ("gptq", "gptq_v2") or config.get("is_marlin_format"):
        raise _unsupported(method, "checkpoint_format", "gptq or gptq_v2", variant)
    offset = 1 if variant == "gptq" else 0
    return PackedFormat(method, block, offset, gptq_shape, gptq_codes, gptq_zeros)


def _find_config(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Of the whole model, or of its text model, whose layers are the ones that are packed."""
    for part in (content, content.get("text_config"), content.get("vision_config")):
        for key in _KEYS:
            found = part.get(key) if isinstance(part, dict) else None
            if not found:
                continue
            if not isinstance(found, dict):
                raise CheckpointError(f"{key} in config.json is no object", found=found)
            return found
    return None


def _check_awq(config: Mapping[str, Any]) -> None:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise _unsupported("awq", "version", "gemm", version)
    backend = str(config.get("backend", "autoawq"))
    if backend != "autoawq":
        raise _unsupported("awq", "backend", "autoawq", backend)
    if not config.get("zero_point", True):
        raise _unsupported("awq", "zero_point", "true", "false")


def _unsupported(method: str, what: str, expected: str, found: object) -> UnsupportedError:
    return UnsupportedError(
        f"the checkpoint is quantised ({method}) with a {what} that is not supported",
        expected=expected,
        found=found,
        fix=_FIX,
    )
