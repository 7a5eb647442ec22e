"""The kernel as it is shipped: CUDA source, and the PTX made from it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from divprune.runtime.errors import BackendError

__all__ = ["PTX_FILE", "SOURCE_FILE", "read_ptx", "source_hash", "stated_source_hash"]

SOURCE_FILE = Path(__file__).with_name("greedy_max_min.cu")
PTX_FILE = Path(__file__).with_name("greedy_max_min.ptx")
_STATED_HASH = re.compile(r"\A// greedy_max_min\.cu, sha256 ([0-9a-f]{64})$", re.MULTILINE)


def read_ptx() -> str:
    """The shipped PTX.

    Raises:
        BackendError: if the file is missing.
    """
    try:
        return PTX_FILE.read_text(encoding="ascii")
    except FileNotFoundError:
        raise BackendError(
            "The selection kernel is missing from this installation",
            expected=PTX_FILE,
            fix="install divprune-edge anew, or run python -m divprune.plugins.compile_ptx",
        ) from None


def source_hash(source: bytes) -> str:
    """SHA-256 of the CUDA source."""
    return hashlib.sha256(source).hexdigest()


def stated_source_hash(ptx: str) -> str | None:
    """SHA-256 of the source that the PTX says it was made from, in its first line."""
    found = _STATED_HASH.match(ptx)
    return found[1] if found else None
