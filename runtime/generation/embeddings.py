"""The token embedding table, left in its file: only the rows that are asked for are read.

Rows are read rather than mapped: a mapping pulls in the pages around every row (2 MiB each
where the page cache holds large folios), and all of them count as memory of this process.
"""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from divprune.runtime.errors import EngineDirectoryError, PromptError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["EmbeddingTable"]

TENSOR_NAME = "embed_tokens"
MAX_HEADER_BYTES = 1 << 20
_DTYPES: dict[str, np.dtype[np.floating]] = {
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}


class _Layout(NamedTuple):
    start: int
    dtype: np.dtype[np.floating]
    vocab_size: int
    hidden_size: int


class EmbeddingTable:
    """Rows of ``embed_tokens.safetensors``, read on demand.

    Args:
        path: A safetensors file with one tensor ``embed_tokens`` [V, hidden], fp16 or fp32.

    Raises:
        EngineDirectoryError: if the file is not that.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise _damaged(path, error) from error
        weakref.finalize(self, self._file.close)
        self._path = path
        layout = _read_layout(path, self._file)
        self._start, self.dtype, self.vocab_size, self.hidden_size = layout

    def rows(self, ids: Sequence[int] | NDArray[np.int64]) -> NDArray[np.floating]:
        """Gather the rows of token ``ids`` [S] as [S, hidden] in the dtype of the file.

        Raises:
            PromptError: if an id lies outside the table.
            EngineDirectoryError: if the file has become shorter since it was opened.
        """
        out = np.empty((len(ids), self.hidden_size), self.dtype)
        row_bytes = self.hidden_size * self.dtype.itemsize
        for row, token_id in zip(out, map(int, ids), strict=True):
            if not 0 <= token_id < self.vocab_size:
                raise PromptError(
                    "a token id lies outside the embedding table",
                    expected=f"0 <= id < {self.vocab_size}",
                    found=token_id,
                    fix="export the model again with divprune-export",
                )
            self._file.seek(self._start + token_id * row_bytes)
            if self._file.readinto(row.view(np.uint8)) != row_bytes:
                raise _damaged(self._path, "the file ends early")
        return out


def _read_layout(path: Path, file: BinaryIO) -> _Layout:
    """Find the tensor in the file: 8 bytes of header length, a JSON header, the data."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise _damaged(path, f"a header of {length} bytes")
    try:
        header = json.loads(file.read(length))
        tensor = header[TENSOR_NAME]
        dtype, (vocab_size, hidden_size) = _DTYPES[tensor["dtype"]], tensor["shape"]
        begin, end = tensor["data_offsets"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    start = 8 + length + begin
    if end - begin != vocab_size * hidden_size * dtype.itemsize:
        raise _damaged(path, f"{end - begin} bytes for [{vocab_size}, {hidden_size}] in {dtype}")
    if path.stat().st_size < 8 + length + end:
        raise _damaged(path, "the file ends early")
    return _Layout(start, dtype, vocab_size, hidden_size)


def _damaged(path: Path, found: object) -> EngineDirectoryError:
    return EngineDirectoryError(
        f"{path} is not an embedding table",
        expected=f"safetensors with {TENSOR_NAME} [vocabulary, hidden] in F16 or F32",
        found=found,
        fix="export the model again with divprune-export",
    )
