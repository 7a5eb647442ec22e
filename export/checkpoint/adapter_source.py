"""A LoRA adapter without its model: found, and put together with what it was trained on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from divprune.export.checkpoint.adapter import ADAPTER_CONFIG
from divprune.export.checkpoint.files import read_json_if_there, read_json_object
from divprune.runtime.errors import CheckpointError
from divprune.runtime.families._original_llava import is_original

__all__ = ["base_of_adapter", "join_adapter", "link_files"]

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")


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
    content = read_json_object(config)
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
    """A directory of links: the base's files, and over them those that came with the adapter.

    Trainers save a copy of the base's config, at times of a quantised one: the base's counts. The
    original LLaVA code's is that of the whole model, whose base may be its decoder alone.
    """
    folder = tempfile.TemporaryDirectory(prefix="divprune-adapter-")
    own = read_json_if_there(adapter / "config.json")
    of_the_base = _WEIGHTS if own and is_original(own) else (*_WEIGHTS, "config.json")
    files = [*_files(base, ()), *_files(adapter, of_the_base)]
    link_files(Path(folder.name), {file.name: file for file in files})
    return folder


def link_files(folder: Path, files: Mapping[str, Path]) -> None:
    """Links by these names, or copies where there are no links."""
    for name, file in files.items():
        try:
            (folder / name).symlink_to(file.resolve())
        except OSError:  # a file system or a user without links
            shutil.copy2(file, folder / name)


def _files(directory: Path, without: tuple[str, ...]) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_file() and not any(path.match(pattern) for pattern in without):
            yield path
