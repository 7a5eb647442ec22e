"""The token embedding table, left in its file: only the rows that are asked for are read.

Rows are read rather than mapped: a mapping pulls in the pages around every row (2 MiB each
where the page cache holds large folios), and all of them count as memory of this process.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from divprune.runtime.directory.safetensors_header import read_safetensors_header
from divprune.runtime.errors import EngineDirectoryError, PromptError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["EmbeddingTable"]

TENSOR_NAME = "embed_tokens"
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
        name: Spells a token, for the message about one that has no row.

    Raises:
        EngineDirectoryError: if the file is not that.
    """

    def __init__(self, path: Path, name: Callable[[int], str | None] = lambda _: None) -> None:
        layout = _read_layout(path)
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise _damaged(path, error) from error
        weakref.finalize(self, self._file.close)
        self._path, self._name = path, name
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
                raise self._no_row(token_id)
            self._file.seek(self._start + token_id * row_bytes)
            if self._file.readinto(row.data.cast("B")) != row_bytes:
                raise _damaged(self._path, "the file ends early")
        return out

    def _no_row(self, token_id: int) -> PromptError:
        name = self._name(token_id)
        return PromptError(
            f"the token {name or token_id} has no row in the embedding table",
            expected=f"tokens below {self.vocab_size}",
            found=f"token {token_id}",
            fix="leave it out of the prompt, or give the model a row for it"
            " (resize_token_embeddings, and training) and export again",
        )


def _read_layout(path: Path) -> _Layout:
    try:
        entries = read_safetensors_header(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    entry = entries.get(TENSOR_NAME)
    if entry is None or len(entries) != 1 or entry.dtype not in _DTYPES or len(entry.shape) != 2:
        found = ", ".join(f"{name} {each.dtype} {each.shape}" for name, each in entries.items())
        raise _damaged(path, found or "no tensor")
    return _Layout(entry.offset, _DTYPES[entry.dtype], *entry.shape)


def _damaged(path: Path, found: object) -> EngineDirectoryError:
    return EngineDirectoryError(
        f"{path} is not an embedding table",
        expected=f"safetensors with {TENSOR_NAME} [vocabulary, hidden] in F16 or F32",
        found=found,
        fix="export the model again with divprune-export",
    )
