"""The kernels as they are shipped: CUDA source, and the PTX made from it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from divprune.runtime.errors import BackendError

__all__ = [
    "CLUSTER",
    "GRID",
    "HALF_GRAM",
    "PTX_FILE",
    "SHIPPED",
    "SOURCE_FILE",
    "KernelFile",
    "read_ptx",
    "read_source",
    "source_hash",
    "stated_source_hash",
]

_FOLDER = Path(__file__).parent
_STATED_HASH = re.compile(r"\A// \w+\.cu, sha256 ([0-9a-f]{64})$", re.MULTILINE)
_INCLUDE = re.compile(rb'^#include "([\w.]+)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class KernelFile:
    """A source, the PTX made from it, and the oldest architecture that the PTX is for.

    Drivers compile PTX for that architecture and everything newer.
    """

    source: Path
    ptx: Path
    architecture: str


def _file(source: str, ptx: str, architecture: str = "compute_80") -> KernelFile:
    return KernelFile(_FOLDER / source, _FOLDER / ptx, architecture)


SOURCE_FILE = _FOLDER / "greedy_max_min.cu"
PTX_FILE = _FOLDER / "greedy_max_min.ptx"
HALF_GRAM = _file("half_gram.cu", "half_gram.ptx")
GRID = _file("many_blocks.cu", "many_blocks.ptx")
CLUSTER = _file("many_blocks.cu", "many_blocks_90.ptx", "compute_90")
SHIPPED = (_file(SOURCE_FILE.name, PTX_FILE.name), HALF_GRAM, GRID, CLUSTER)


def read_ptx(path: Path | None = None) -> str:
    """A shipped PTX; that of the single-block kernel by default.

    Raises:
        BackendError: if the file is missing.
    """
    path = path or PTX_FILE
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise BackendError(
            "The selection kernel is missing from this installation",
            expected=path,
            fix="install divprune-edge anew, or run python -m divprune.plugins.compile_ptx",
        ) from None


def read_source(path: Path) -> bytes:
    """A CUDA source with the files beside it that it includes put in."""
    return _INCLUDE.sub(
        lambda found: path.with_name(found[1].decode()).read_bytes(), path.read_bytes()
    )


def source_hash(source: bytes) -> str:
    """SHA-256 of the CUDA source."""
    return hashlib.sha256(source).hexdigest()


def stated_source_hash(ptx: str) -> str | None:
    """SHA-256 of the source that the PTX says it was made from, in its first line."""
    found = _STATED_HASH.match(ptx)
    return found[1] if found else None
