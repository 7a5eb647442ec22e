"""Opens an engine directory: nothing of it is loaded before all of it was checked.

Files are compared with the manifest by SHA-256. The first time a file is seen it is read in
full; after that its hash is remembered (`file_hash`) for as long as size,
modification time and inode stay the same. ``verify="full"`` reads everything again, which also
finds a byte that was changed with the modification time put back.
"""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from divprune.runtime.directory.bounded_json import read_bounded
from divprune.runtime.directory.export_command import export_command
from divprune.runtime.directory.file_hash import HashCache
from divprune.runtime.directory.limits import shorten_cache
from divprune.runtime.directory.manifest import MANIFEST_NAME, FileRecord, Manifest
from divprune.runtime.directory.manifest_json import RE_EXPORT
from divprune.runtime.directory.path_text import check_utf8
from divprune.runtime.errors import EngineDirectoryError, OptionError

__all__ = ["EngineDirectory", "read_manifest"]

_WRITE = (
    "name the directory that divprune-export wrote, or write one: "
    "divprune-export --model MODEL --keep KEEP --output ENGINE_DIR"
)
_MAX_MANIFEST_BYTES = 16 << 20
_PARTIAL = re.compile(r"\..+\.(partial|old)-[0-9a-f]+")


class _Identity(NamedTuple):
    """What tells a file from another in its place."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class EngineDirectory:
    """A checked engine directory; ``path`` is absolute. Made by `EngineDirectory.open`.

    ``manifest`` has the limits of this run, which may be lower than those of the export.
    """

    path: Path
    manifest: Manifest
    _seen: Mapping[str, _Identity | None] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        verify: Literal["cached", "full"] = "cached",
        max_seq_len: int | None = None,
    ) -> EngineDirectory:
        """Read the manifest and check every file that it lists.

        Args:
            path: The directory.
            verify: ``full`` reads every file; ``cached`` only those that are new or changed
                by size, modification time or inode since they were last read.
            max_seq_len: Length of the KV cache; None takes that of the export.

        Raises:
            EngineDirectoryError: for a directory that is missing or is a half-written
                export, a manifest that cannot be used, a file that is missing, is not a regular
                file inside the directory, or holds other bytes than were exported, and one that
                would be read but is not in the manifest.
            OptionError: for another value of ``verify``, and a ``max_seq_len`` that the
                directory was not exported for.
            UnsupportedError: if its graphs have a cache of fixed length.
        """
        if verify not in ("cached", "full"):
            raise OptionError("--verify is unknown", expected="cached or full", found=verify)
        root = _existing_directory(Path(path))
        manifest = read_manifest(root)
        limited = shorten_cache(manifest, max_seq_len)
        fix = export_command(manifest, root)
        for relative, record in manifest.files.items():
            _check_size(root, relative, record, fix)
        _check_listed(root, manifest, fix)
        seen = {relative: _identity(root / relative) for relative in manifest.files}
        _check_hashes(root, manifest, fix, always=verify == "full")
        return cls(root, limited, seen)

    def require_unchanged(self) -> None:
        """Notice files that were replaced since they were checked, before they are read again.

        Raises:
            EngineDirectoryError: naming the first of them.
        """
        for relative, identity in self._seen.items():
            if _identity(self.path / relative) != identity:
                raise EngineDirectoryError(
                    f"{self.path / relative} was replaced while the directory was in use",
                    expected="the file that was checked when it was opened",
                    found="another one",
                    fix="start again with the directory as it is now",
                )

    def file(self, relative: str) -> Path:
        """Absolute path of a file of the manifest, named as the manifest names it.

        Raises:
            EngineDirectoryError: if the manifest has no such file, so nobody checked it.
        """
        if relative not in self.manifest.files:
            raise EngineDirectoryError(
                f"{self.path}: the export has no file {relative}",
                expected=f"one of {', '.join(sorted(self.manifest.files))}",
                found=relative,
                fix=export_command(self.manifest, self.path),
            )
        return self.path / relative


def _existing_directory(path: Path) -> Path:
    check_utf8(path, "ENGINE_DIR", "rename it")
    expected = f"a directory with {MANIFEST_NAME}, as divprune-export writes it"
    try:
        root = path.resolve(strict=True)
        found = stat.filemode(root.stat().st_mode)
    except (OSError, RuntimeError, ValueError) as error:
        raise EngineDirectoryError(
            f"there is no engine directory {path}", expected=expected, found=error, fix=_WRITE
        ) from error
    if not root.is_dir():
        raise EngineDirectoryError(
            f"{path} is not a directory", expected=expected, found=f"a file ({found})", fix=_WRITE
        )
    if _PARTIAL.fullmatch(root.name):
        raise EngineDirectoryError(
            f"{path} is what an interrupted export left behind",
            expected="a finished export",
            found="a half-written or discarded one",
            fix="export again, which also removes it",
        )
    return root


def read_manifest(root: Path) -> Manifest:
    """The checked manifest of a directory, whose files nobody has looked at yet.

    Raises:
        EngineDirectoryError: if it is missing, damaged, too large or of another version.
    """
    path = _regular_file(root, MANIFEST_NAME, _WRITE)
    fix = f"divprune-export --model MODEL --keep KEEP --output {shlex.quote(str(root))} --force"
    try:
        content = read_bounded(path, _MAX_MANIFEST_BYTES, fix=fix)
        return Manifest.from_json(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise EngineDirectoryError(
            f"{path} cannot be read", expected="JSON in UTF-8", found=error, fix=fix
        ) from error
    except EngineDirectoryError as error:
        raise EngineDirectoryError(
            f"{root}/{error.what}",
            expected=error.expected,
            found=error.found,
            fix=fix if error.fix == RE_EXPORT else error.fix,
        ) from None


def _regular_file(root: Path, relative: str, fix: str) -> Path:
    """The file with symbolic links resolved, so that it cannot be outside the directory."""
    path = root / relative
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        missing = isinstance(error, FileNotFoundError)
        raise EngineDirectoryError(
            f"{path} is missing" if missing else f"{path} cannot be read",
            expected="a file of the export",
            found="no such file" if missing else error,
            fix=fix,
        ) from error
    if not real.is_relative_to(root):
        raise EngineDirectoryError(
            f"{path} leads out of the engine directory",
            expected=f"a file inside {root}",
            found=real,
            fix=f"if you trust it, make a copy without links: cp -rL {shlex.quote(str(root))} COPY",
        )
    if not stat.S_ISREG(mode):
        raise EngineDirectoryError(
            f"{path} is not a file", expected="a regular file", found=stat.filemode(mode), fix=fix
        )
    return real


def _check_size(root: Path, relative: str, record: FileRecord, fix: str) -> None:
    size = _regular_file(root, relative, fix).stat().st_size
    if size != record.size:
        raise EngineDirectoryError(
            f"{root / relative} is not the file that was exported",
            expected=f"{record.size} bytes",
            found=f"{size} bytes",
            fix=f"copy the directory again, or {fix}",
        )


def _check_listed(root: Path, manifest: Manifest, fix: str) -> None:
    """Refuse what a run would read although nobody checked it.

    Graphs read their weights from files beside them, under whatever name.
    """
    folders = {PurePosixPath(graph.path).parent for graph in manifest.graphs.values()}
    beside = [
        path.relative_to(root).as_posix()
        for folder in folders
        if folder != PurePosixPath(".")
        for path in sorted((root / folder).iterdir())
        if path.is_symlink() or not path.is_dir()  # those of other graphs lie side by side
    ]
    for relative in beside:
        if relative not in manifest.files:
            raise EngineDirectoryError(
                f"{root / relative} is not in {MANIFEST_NAME}, so nobody has checked it",
                expected="a size and a SHA-256 of every file that is read",
                found="no such entry in files",
                fix=f"remove it, or {fix}",
            )


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return _Identity(status.st_size, status.st_mtime_ns, status.st_ino)


def _check_hashes(root: Path, manifest: Manifest, fix: str, *, always: bool) -> None:
    cache = HashCache()
    try:
        for relative, record in manifest.files.items():
            _check_hash(root / relative, record, fix, cache, always=always)
    finally:
        cache.save()


def _check_hash(
    path: Path, record: FileRecord, fix: str, cache: HashCache, *, always: bool
) -> None:
    try:
        digest = cache.sha256(path, always=always)
        if digest != record.sha256:  # of another file, perhaps, that had the same time and size
            cache.forget(path)
            digest = cache.sha256(path, always=True)
    except OSError as error:
        raise EngineDirectoryError(
            f"{path} cannot be read", expected="a readable file", found=error, fix=fix
        ) from error
    if digest != record.sha256:
        cache.forget(path)
        raise EngineDirectoryError(
            f"{path} is not the file that was exported",
            expected=f"SHA-256 {record.sha256}",
            found=f"SHA-256 {digest}",
            fix=f"copy the directory again, or {fix}",
        )
