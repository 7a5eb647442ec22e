"""Where the tensors of a ``pytorch_model.bin`` lie, without reading one of them.

``torch.save`` writes a zip archive of storages as they are, and a pickle that says which tensor
views which of them. The pickle is read by torch's unpickler for weights, which runs no code from
it, under fake tensors, which take no memory and know their storage's place in the file.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["pickled_tensors"]

_MAX_PICKLE_BYTES = 1 << 26
_OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before 1.6
# As safetensors spells them; any other type goes by torch's name, for the error that refuses it.
_DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "int32": "I32", "int64": "I64"}


def pickled_tensors(file: Path) -> dict[str, tuple[int, str, tuple[int, ...]]]:
    """Offset into ``file``, type as safetensors spells it, and shape of each tensor.

    Raises:
        CheckpointError: if it is damaged or older, or holds something else than whole tensors.
    """
    with file.open("rb") as opened:
        if opened.read(len(_OLD)) == _OLD:
            raise _to_be_rewritten(file, "the format before torch 1.6")
    try:
        _check_archive(file)
        content = _load(file)
    except pickle.UnpicklingError as error:  # its text is a page on how to run such a file anyway
        raise _damaged(file, "a pickle of something else than tensors") from error
    except Exception as error:  # of zipfile and torch, which have many for what can be damaged
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    if not isinstance(content, Mapping):
        raise _damaged(file, f"a {type(content).__name__}")
    size = file.stat().st_size
    return {str(key): _place(file, str(key), value, size) for key, value in content.items()}


def _load(file: Path) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.load(file, map_location="cpu", weights_only=True)


def _check_archive(file: Path) -> None:
    """Refuse what would grow when it is read: nothing in a checkpoint is compressed."""
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            if entry.filename.endswith(".pkl") and entry.file_size > _MAX_PICKLE_BYTES:
                raise ValueError(f"{entry.filename} has {entry.file_size} bytes")


def _place(file: Path, key: str, value: Any, size: int) -> tuple[int, str, tuple[int, ...]]:
    import torch

    if not isinstance(value, torch.Tensor):
        raise _damaged(file, f"{key}, which is a {type(value).__name__}")
    if value.layout != torch.strided:
        raise _damaged(file, f"{key}, which is sparse")
    start = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not value.is_contiguous():
        raise _to_be_rewritten(file, f"{key}, which does not lie there in one piece")
    offset = start + value.storage_offset() * value.element_size()
    if offset + value.numel() * value.element_size() > size:
        raise _damaged(file, f"{key}, which ends behind the end of the file")
    return offset, _dtype_name(value.dtype), tuple(value.shape)


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


def _to_be_rewritten(file: Path, found: str) -> CheckpointError:
    new = f"{file}.new"
    return CheckpointError(
        f"the tensors in {file} cannot be read one by one",
        expected="the format that torch.save has written since torch 1.6, each tensor in one piece",
        found=found,
        fix='python -c "import os, torch; '
        f"found = torch.load({str(file)!r}, map_location='cpu', weights_only=True); "
        f"torch.save({{k: v.contiguous() for k, v in found.items()}}, {new!r}); "
        f'os.replace({new!r}, {str(file)!r})"',
    )


def _damaged(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{file} is not a whole file of weights",
        expected="a dict of tensors, as torch.save writes it",
        found=found,
        fix="download the file again",
    )
