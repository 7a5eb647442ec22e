"""What lies in a checkpoint's directory: its JSON files, and the files with its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divprune.runtime.directory import bounded_json
from divprune.runtime.directory.path_text import is_there
from divprune.runtime.errors import CheckpointError

__all__ = ["read_json_if_there", "read_json_object", "weight_files"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def weight_files(path: Path) -> tuple[Path, ...]:
    """The weight files of a checkpoint directory, through the index if there is one.

    Safetensors win over ``pytorch_model.bin``, and a single file over an index, as in
    transformers.

    Raises:
        CheckpointError: if there are none, or one that the index names is missing.
    """
    for name in _WEIGHTS:
        if (path / name).is_file():
            return (path / name,)
        if (index := path / f"{name}.index.json").is_file():
            return _indexed_files(index)
    raise CheckpointError(
        f"{path} has no weights",
        expected=" or ".join(_WEIGHTS) + ", or shards of one of them and their index",
        found=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing",
        fix="download the checkpoint again",
    )


def _indexed_files(index: Path) -> tuple[Path, ...]:
    content = read_json_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", fix="download the checkpoint again")
    names = sorted({str(name) for name in weight_map.values()})
    found = [name for name in names if is_there(file := index.parent / name) and file.is_file()]
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names a shard outside its directory", expected="file names", found=name
            )
        if name not in found:
            raise CheckpointError(
                f"the shard {index.parent / name} is missing",
                expected=f"{len(names)} shards, as {index.name} lists them",
                found=f"{len(found)} of them",
                fix="download the checkpoint again",
            )
    return tuple(index.parent / name for name in names)


def read_json_object(file: Path) -> dict[str, Any]:
    """Content of a JSON file that holds an object.

    Raises:
        CheckpointError: if it is missing, holds something else, or cannot be used: it is too
            large, too deep, or has numbers and text that no library takes.
    """
    fix = "download the checkpoint again" if file.exists() else "give the directory of a checkpoint"
    return bounded_json.read_json_object(file, error=CheckpointError, fix=fix)


def read_json_if_there(file: Path) -> dict[str, Any] | None:
    """Content of a JSON file that a checkpoint may lack: None without it.

    Raises:
        CheckpointError: if it is there and `read_json_object` refuses it.
    """
    return read_json_object(file) if file.is_file() else None
