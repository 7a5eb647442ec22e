"""Copies of an engine directory with something changed, manifest included where it matters."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from divprune.runtime.directory.manifest import FileRecord, Manifest
from tests.runtime.example_manifest import with_changes


def read_manifest(engine_dir: Path) -> Manifest:
    return Manifest.from_json((engine_dir / "manifest.json").read_text())


def copy_engine(
    engine_dir: Path, copy: Path, *, files: Mapping[str, bytes] | None = None, **changes: Any
) -> Path:
    """Copy a directory, replace files (their records too) and change fields of the manifest."""
    shutil.copytree(engine_dir, copy)
    manifest = with_changes(read_manifest(copy), **changes)
    records = dict(manifest.files)
    for relative, content in (files or {}).items():
        (copy / relative).write_bytes(content)
        records[relative] = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    (copy / "manifest.json").write_text(replace(manifest, files=records).to_json())
    return copy
