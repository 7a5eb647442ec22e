"""A LoRA adapter without its model: found, and put together with what it was trained on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from divprune.export.checkpoint.adapter import ADAPTER_CONFIG
from divprune.runtime.directory.bounded_json import read_json_object
from divprune.runtime.errors import CheckpointError

__all__ = ["base_of_adapter", "join_adapter"]

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")
# Of the model's own: trainers save a copy of the base's, at times of a quantised one.
_OF_THE_BASE = ("config.json", *_WEIGHTS)


def base_of_adapter(directory: Path) -> tuple[str, str | None] | None:
    """What the adapter in a directory without weights was trained on, and its revision.

    Returns:
        None where there is no adapter, or weights are beside it.

    Raises:
        CheckpointError: if the adapter does not say.
    """
    config = directory / ADAPTER_CONFIG
    if not config.is_file() or any(any(directory.glob(pattern)) for pattern in _WEIGHTS):
        return None
    content = read_json_object(config, error=CheckpointError)
    base, revision = content.get("base_model_name_or_path"), content.get("revision")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"the adapter in {directory} does not say what it was trained on",
            expected=f"base_model_name_or_path in {ADAPTER_CONFIG}",
            found=base,
            fix=f"write the model's directory or hub id there, in {config}",
        )
    return base, revision if isinstance(revision, str) else None


def join_adapter(adapter: Path, base: Path) -> tempfile.TemporaryDirectory[str]:
    """A directory of links: the base's files, and over them those that came with the adapter."""
    folder = tempfile.TemporaryDirectory(prefix="divprune-adapter-")
    for file in (*_files(base, ()), *_files(adapter, _OF_THE_BASE)):
        link = Path(folder.name, file.name)
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(file.resolve())
        except OSError:  # a file system or a user without links
            shutil.copy2(file, link)
    return folder


def _files(directory: Path, without: tuple[str, ...]) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in without):
            yield path
