"""Tensors that are made piece by piece, and safetensors files that are never held whole."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["STORED_TYPES", "DType", "TensorSource", "write_json", "write_weights"]

DType = Literal["fp16", "bf16", "fp32"]
STORED_TYPES: dict[DType, tuple[str, str, int]] = {  # torch name, safetensors name, bytes
    "fp16": ("float16", "F16", 2),
    "bf16": ("bfloat16", "BF16", 2),
    "fp32": ("float32", "F32", 4),
}
_CHUNK = 1 << 22  # numbers made at once: 16 MiB of float32
_SPREAD = 0.02  # what models are initialised with; activations stay far from the end of fp16


@dataclass(frozen=True)
class TensorSource:
    """A tensor of any size.

    Attributes:
        shape: Its shape.
        pieces: Makes its numbers anew, float32 in row-major order, a piece at a time.
    """

    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[NDArray[np.float32]]]

    @classmethod
    def of(cls, array: NDArray[np.float32]) -> TensorSource:
        """A tensor that is there already."""
        return cls(tuple(array.shape), lambda: iter([array.reshape(-1)]))

    @classmethod
    def random(cls, name: str, shape: tuple[int, ...], seed: int) -> TensorSource:
        """Normal with std 0.02; norm weights lie around 1. Depends on name and seed only."""
        is_norm = name.endswith("weight") and ("norm" in name.split(".")[-2] or len(shape) == 1)
        total = math.prod(shape)

        def pieces() -> Iterator[NDArray[np.float32]]:
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            for start in range(0, total, _CHUNK):
                values = rng.standard_normal(min(_CHUNK, total - start), dtype=np.float32)
                values *= np.float32(_SPREAD)
                yield values + np.float32(1) if is_norm else values

        return cls(shape, pieces)


def write_weights(
    directory: Path, tensors: Mapping[str, TensorSource], dtype: DType, shard_size: int
) -> None:
    """Write ``model.safetensors``, or shards of at most ``shard_size`` bytes and an index."""
    size_of = STORED_TYPES[dtype][2]
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * size_of
        if shards[-1] and used + size > shard_size:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    if len(shards) == 1:
        _write_shard(directory / "model.safetensors", tensors, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / file, tensors, names, dtype)
        weight_map |= dict.fromkeys(names, file)
    total = sum(math.prod(tensor.shape) for tensor in tensors.values()) * size_of
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(directory / "model.safetensors.index.json", index)


def write_json(path: Path, content: object) -> None:
    """Write JSON as the hub's files are written."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def _write_shard(
    path: Path, tensors: Mapping[str, TensorSource], names: list[str], dtype: DType
) -> None:
    """One safetensors file: header length, JSON header, then the data."""
    _, stored, size_of = STORED_TYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        end = offset + math.prod(tensors[name].shape) * size_of
        header[name] = {
            "dtype": stored,
            "shape": list(tensors[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for piece in tensors[name].pieces():
                file.write(_encode(piece, dtype))


def _encode(values: NDArray[np.float32], dtype: DType) -> bytes:
    if dtype == "fp16":
        return values.astype("<f2").tobytes()
    if dtype == "fp32":
        return values.astype("<f4").tobytes()
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to even
    return (rounded >> np.uint32(16)).astype("<u2").tobytes()
