"""SHA-256 of large files, and a memory of the files that were hashed before.

A file that still has the size, modification time and inode it had when it was hashed is taken
to hold the same bytes. Bytes changed with the size kept and the modification time put back are
therefore not noticed: only hashing again (``--verify full``) finds those.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from divprune.runtime.directory.bounded_json import parse_json

__all__ = ["HashCache", "cache_directory", "hash_file"]

_LOGGER = logging.getLogger(__name__)
_CHUNK = 1 << 20
_CACHE_VERSION = 1
_MAX_ENTRIES = 4096
_MAX_BYTES = 16 << 20
# A file changed right after it was hashed may keep its modification time where clocks are
# coarse; one that is this fresh is not remembered.
_FRESH_NS = 2_000_000_000
_SHA256 = re.compile(r"[0-9a-f]{64}")


def hash_file(path: Path, on_chunk: Callable[[int], object] | None = None) -> str:
    """SHA-256 of a file in hexadecimal digits, read in chunks: memory does not grow.

    Args:
        path: The file.
        on_chunk: Called with the number of bytes of each chunk that was read.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return _hash_open(file, on_chunk)


def cache_directory() -> Path | None:
    """Where this package keeps what it can compute again; None where there is no home.

    ``DIVPRUNE_CACHE_DIR``, else ``divprune`` in ``XDG_CACHE_HOME``, else ``~/.cache/divprune``.
    """
    if own := os.environ.get("DIVPRUNE_CACHE_DIR"):
        return Path(own).absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG specification: relative paths are to be ignored
        return shared / "divprune"
    try:
        return Path.home() / ".cache" / "divprune"
    except RuntimeError:
        return None


@dataclass(frozen=True, slots=True)
class _Entry:
    size: int
    mtime_ns: int
    inode: int
    sha256: str

    def describes(self, status: os.stat_result) -> bool:
        known = (self.size, self.mtime_ns, self.inode)
        return known == (status.st_size, status.st_mtime_ns, status.st_ino)


class HashCache:
    """Remembers SHA-256 by absolute path, as long as size, mtime and inode stay the same.

    A cache that cannot be read or written costs time, not correctness: it is reported once
    in the log and the files are hashed again.
    """

    def __init__(self, directory: Path | None = None) -> None:
        directory = directory or cache_directory()
        self._path = directory / "file-hashes.json" if directory else None
        self._entries = _read_entries(self._path)
        self._new: dict[str, _Entry] = {}
        self._forgotten: set[str] = set()

    def sha256(self, path: Path, *, always: bool = False) -> str:
        """SHA-256 of a file, from memory where that is allowed and possible.

        Args:
            path: The file.
            always: Read the file even if it is known.

        Raises:
            OSError: if it cannot be read.
        """
        key = str(path.absolute())
        entry = self._new.get(key) or self._entries.get(key)
        if entry and not always and entry.describes(path.stat()):
            return entry.sha256
        _LOGGER.info("reading %s in full to check it", path)
        with path.open("rb", buffering=0) as file:
            before = os.fstat(file.fileno())
            digest = _hash_open(file)
            after = os.fstat(file.fileno())
        entry = _Entry(before.st_size, before.st_mtime_ns, before.st_ino, digest)
        if entry.describes(after) and abs(time.time_ns() - entry.mtime_ns) > _FRESH_NS:
            self._new[key] = entry
        return digest

    def forget(self, path: Path) -> None:
        """Remember nothing of a file: what it was expected to be may be put back in its place."""
        key = str(path.absolute())
        self._new.pop(key, None)
        if self._entries.pop(key, None) is not None:
            self._forgotten.add(key)

    def save(self) -> None:
        """Write what was learnt, together with what other processes wrote meanwhile."""
        if not (self._new or self._forgotten) or self._path is None:
            return
        # Newest last: the oldest entries go first when there are too many.
        passed = self._new.keys() | self._forgotten
        entries = {k: v for k, v in _read_entries(self._path).items() if k not in passed}
        entries.update(self._new)
        kept = dict(list(entries.items())[-_MAX_ENTRIES:])
        try:
            _write_entries(self._path, kept)
        except OSError as error:
            _LOGGER.warning("cannot remember file hashes in %s: %s", self._path, error)
            return
        self._entries, self._new, self._forgotten = kept, {}, set()


def _hash_open(file: FileIO, on_chunk: Callable[[int], object] | None = None) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    while count := file.readinto(buffer):
        digest.update(view[:count])
        if on_chunk:
            on_chunk(count)
    return digest.hexdigest()


def _read_entries(path: Path | None) -> dict[str, _Entry]:
    if path is None:
        return {}
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("not a regular file")
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        content = parse_json(path.read_bytes())
        if content["version"] != _CACHE_VERSION:
            return {}
        return {key: _entry(value) for key, value in content["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        _LOGGER.warning("ignoring the damaged hash cache %s: %s", path, error)
        return {}


def _entry(value: dict[str, Any]) -> _Entry:
    entry = _Entry(**value)
    numbers = (entry.size, entry.mtime_ns, entry.inode)
    if not all(type(number) is int for number in numbers) or not _SHA256.fullmatch(entry.sha256):
        raise ValueError(f"not an entry: {value}")
    return entry


def _write_entries(path: Path, entries: dict[str, _Entry]) -> None:
    files = {key: asdict(entry) for key, entry in entries.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"version": _CACHE_VERSION, "files": files}, file)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
