"""The tensors of a weight file: where each lies, and one at a time into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.export.checkpoint.pickle_file import pickled_tensors
from divprune.runtime.directory.safetensors_header import read_safetensors_header
from divprune.runtime.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPES", "StoredTensor", "read_tensor", "rows_apart", "stored_tensors"]

DTYPES = {
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "I32": ("int32", 4),  # of packed weights only
}
"""Types that are read: torch's name and bytes of a value."""


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: ``offset`` bytes into ``file``."""

    key: str
    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def stored_tensors(file: Path) -> list[StoredTensor]:
    """Names, types, shapes and offsets of a safetensors file or a ``pytorch_model.bin``.

    Raises:
        CheckpointError: if what the file says and its size do not fit each other.
    """
    if file.suffix == ".bin":
        found = pickled_tensors(file)
        return [StoredTensor(key, file, *place) for key, place in found.items()]
    try:
        entries = read_safetensors_header(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file",
            expected="a header and all the data it describes, each tensor behind the one before",
            found=error,
            fix="download the file again",
        ) from error
    return [
        StoredTensor(key, file, entry.offset, entry.dtype, entry.shape)
        for key, entry in entries.items()
    ]


def read_tensor(tensor: StoredTensor) -> torch.Tensor:
    """One tensor of a type in ``DTYPES`` in memory of its own.

    Plain reads instead of a mapping: the resident size is that of the tensors held.

    Raises:
        CheckpointError: if the file has become shorter.
    """
    import torch

    torch_name, size_of = DTYPES[tensor.dtype]
    buffer = torch.empty(math.prod(tensor.shape) * size_of, dtype=torch.uint8)
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        _read_into(file, buffer.numpy().data, tensor)
    return buffer.view(getattr(torch, torch_name)).reshape(tensor.shape)


def rows_apart(
    tensor: StoredTensor, joined_rows: Mapping[str, tuple[str, ...]]
) -> list[StoredTensor]:
    """The tensors whose rows lie in one behind the other, or the tensor itself.

    Args:
        tensor: Weight or bias of a linear layer, of a type in ``DTYPES``, or another tensor.
        joined_rows: How names of joined layers end, and the endings of those in them.

    Raises:
        CheckpointError: if it has not as many rows as they need.
    """
    layer, _, kind = tensor.key.rpartition(".")
    ending = next((end for end in joined_rows if layer.endswith(end)), None)
    if ending is None or kind not in ("weight", "bias"):
        return [tensor]
    parts = joined_rows[ending]
    rows, left = divmod(tensor.shape[0] if tensor.shape else 0, len(parts))
    if left or not rows:
        raise CheckpointError(
            f"{tensor.key} does not hold {len(parts)} layers",
            expected=f"a multiple of {len(parts)} rows",
            found=list(tensor.shape),
        )
    shape = (rows, *tensor.shape[1:])
    size = math.prod(shape) * DTYPES[tensor.dtype][1]
    prefix = layer.removesuffix(ending)
    return [
        replace(
            tensor,
            key=f"{prefix}{part}.{kind}",
            offset=tensor.offset + number * size,
            shape=shape,
        )
        for number, part in enumerate(parts)
    ]


def _read_into(file: Any, view: memoryview, tensor: StoredTensor) -> None:
    """Fill ``view``; one read call returns 2 GiB at most."""
    while view:
        count = file.readinto(view)
        if not count:
            raise CheckpointError(
                f"{tensor.file} ends inside {tensor.key}", fix="download the file again"
            )
        view = view[count:]
