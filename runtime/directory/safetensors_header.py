"""The header of a safetensors file, checked against the file before anything is read by it."""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from divprune.runtime.directory.bounded_json import open_for_reading, parse_json

__all__ = ["TensorEntry", "read_safetensors_header"]

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file.

    Attributes:
        dtype: As safetensors spells it, such as ``F16``.
        shape: Its lengths.
        offset: Its first byte, counted from the beginning of the file.
        num_bytes: Its length.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


def read_safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a file by its name, in the order in which they lie.

    Raises:
        ValueError: if header and file do not fit each other: data is missing, left over, shared
            by two tensors or of another length than type and shape say.
        OSError: if the file cannot be read.
    """
    with os.fdopen(open_for_reading(path), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no plain file")
        size = status.st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"a header of {length} bytes in a file of {size}")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)
    start = 8 + length
    entries = {name: _entry(name, value, start) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)))
    end = start
    for name, entry in ordered.items():
        if entry.offset != end:
            what = "shares bytes with the one before" if entry.offset < end else "leaves a gap"
            raise ValueError(f"{name} begins at byte {entry.offset}, not {end}: it {what}")
        end += entry.num_bytes
    if end != size:
        raise ValueError(f"the data ends at byte {end} of a file of {size}")
    return ordered


def _entry(name: str, value: object, start: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]  # type: ignore[index]
        bits = _BITS[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name} is no tensor: {type(error).__name__} {error}") from None
    numbers = (begin, end, *shape) if isinstance(shape, list) else (None,)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{name} has the shape {shape} at {[begin, end]}")
    expected = -(-math.prod(shape) * bits // 8)
    if end - begin != expected:
        raise ValueError(f"{name} has {end - begin} bytes for {dtype} {shape}, not {expected}")
    return TensorEntry(dtype, tuple(shape), start + begin, end - begin)
