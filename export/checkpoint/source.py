"""Find the checkpoint that ``--model`` names: a preset, a directory, or a hub repository."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from divprune.configs import list_presets, load_preset, refuse_ambiguous
from divprune.export.checkpoint.adapter import check_adapter
from divprune.export.checkpoint.adapter_source import base_of_adapter, join_adapter
from divprune.export.checkpoint.files import read_json_object, weight_files
from divprune.export.checkpoint.hub import (
    CONFIGS,
    PICKLES,
    WEIGHTS,
    download_command,
    nearest_preset,
    page_of,
    snapshot,
)
from divprune.export.checkpoint.original import join_original
from divprune.runtime.directory.path_text import check_utf8, expand_user, is_there
from divprune.runtime.errors import CheckpointError, OptionError
from divprune.runtime.families._original_llava import tower_folder

__all__ = [
    "ModelSource",
    "resolve_model",
]

logger = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint on this machine and where it came from.

    Attributes:
        path: Directory with config.json and weights.
        model_id: Hub id, or a local directory as ``--model`` takes it (never a bare name).
        revision: Commit hash on the hub; ``None`` for a local directory.
        joined: What keeps ``path`` while this is in use, where it is a directory of links: an
            adapter with its model, or a checkpoint of original code in transformers' form.
    """

    path: Path
    model_id: str
    revision: str | None
    joined: tuple[TemporaryDirectory[str], ...] = ()


def resolve_model(model: str, revision: str | None = None) -> ModelSource:
    """Turn what the user gave as ``--model`` into a directory, downloading if need be.

    A directory wins over a hub id; a checkpoint that is called like a preset has to be told from
    it.

    Args:
        model: Preset name, local directory, or hub id (``org/name``).
        revision: Branch, tag or commit on the hub; not for local directories.

    Raises:
        OptionError: if ``model`` is none of the three, or a preset and a checkpoint, or
            ``revision`` goes with a directory.
        CheckpointError: if the directory is no checkpoint, or the hub does not give it.
    """
    source = _find(model, revision)
    content = read_json_object(source.path / "config.json")
    find_tower = partial(_find_tower, expand_user(model))
    joined = join_original(source.path, content, find_tower)
    if joined is None:
        return source
    return replace(source, path=Path(joined.name), joined=(*source.joined, joined))


def _find(model: str, revision: str | None) -> ModelSource:
    """The checkpoint in its own layout."""
    path = expand_user(model)
    if model in list_presets():
        hub_id = load_preset(model).hub_id
        refuse_ambiguous(model, f"--model ./{model}", f"--model {hub_id}")
        return _from_hub(hub_id, revision)
    if model and is_there(path):
        return _from_directory(path, _as_path(model), revision)
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return _from_hub(model, revision)
    raise OptionError(
        f"--model {model} is not a preset, a directory or a hub id",
        expected=f"a preset ({', '.join(list_presets())}), an existing directory, "
        "or a hub id of the form org/name",
        found=model,
        fix=nearest_preset(model),
    )


def _as_path(model: str) -> str:
    """The directory as it was given, so written that nobody takes it for a preset or a hub id."""
    if model in (".", ".."):
        return str(Path(model).resolve())
    is_plain = Path(model).is_absolute() or model.startswith(("./", "../", "~"))
    return model if is_plain else f"./{model}"


def _from_directory(path: Path, name: str, revision: str | None) -> ModelSource:
    if revision is not None:
        raise OptionError(
            "--revision goes with models from the hub only",
            expected="no --revision with a local directory",
            found=f"--revision {revision} and {path}",
        )
    base = base_of_adapter(path)
    if base is not None:
        return _with_base(path, name, None, *base)
    check_utf8(path, "--model", "rename it")
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint directory",
            expected=f"{path / 'config.json'}",
            found="no such file",
            fix="give the directory that holds config.json and the weights",
        )
    weight_files(path)
    return ModelSource(path, name, None)


def _from_hub(model_id: str, revision: str | None) -> ModelSource:
    path = _download(model_id, revision)
    base = base_of_adapter(path)
    if base is not None:
        return _with_base(path, model_id, path.name, *base)
    if (problem := _problem(path)) is not None:
        if not _answers(model_id, revision):
            raise CheckpointError(
                f"the copy of {model_id} in the cache is not whole",
                expected="a transformers checkpoint",
                found=problem,
                fix=download_command(model_id, revision),
            )
        raise CheckpointError(
            f"{model_id} has no checkpoint that can be read",
            expected="config.json, and safetensors or pytorch_model.bin",
            found=problem,
            fix=f"give the model that this one was made from: {page_of(model_id)} names it",
        )
    return ModelSource(path, model_id, path.name)


def _find_tower(checkpoint: Path, name: str, with_weights: bool) -> Path:
    """The vision tower that a checkpoint names: a directory, also beside it, or a hub id."""
    folder = tower_folder(name, checkpoint)
    if folder is not None:
        return folder
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(
            "the checkpoint's vision tower is not here",
            expected=f"{name}, as mm_vision_tower in config.json names it: a directory or a hub id",
            found="neither",
            fix="write the tower's directory or hub id to mm_vision_tower in config.json",
        )
    return _download(name, None) if with_weights else snapshot(name, None, CONFIGS)


def _download(model_id: str, revision: str | None) -> Path:
    """A repository with its weights; pickled ones only where there are no safetensors."""
    path = snapshot(model_id, revision, (*CONFIGS, *WEIGHTS))
    if not any(path.glob("*.safetensors")):
        path = snapshot(model_id, revision, (*CONFIGS, *WEIGHTS, *PICKLES))
    return path


def _problem(path: Path) -> str | None:
    """What a snapshot lacks."""
    if not (path / "config.json").is_file():
        return f"{path} has no config.json"
    try:
        weight_files(path)
    except CheckpointError as error:
        return error.what
    return None


def _answers(model_id: str, revision: str | None) -> bool:
    """Whether the hub does: a snapshot is all that it has then, not what the cache has of it."""
    import huggingface_hub

    try:
        huggingface_hub.file_exists(model_id, "config.json", revision=revision)
    except Exception:  # errors of the hub and its HTTP client
        return False
    return True


def _with_base(
    adapter: Path, model_id: str, revision: str | None, base: str, base_revision: str | None
) -> ModelSource:
    """An adapter on the model that it names; the name may be a directory of another machine."""
    logger.info("%s is an adapter of %s", model_id, base)
    folder = expand_user(base)
    if is_there(folder) and base_of_adapter(folder) is not None:
        raise CheckpointError(
            f"{adapter} is an adapter of another adapter",
            expected="a model with weights of its own in base_model_name_or_path",
            found=base,
            fix="merge the first adapter into its model, and name that in adapter_config.json",
        )
    try:
        source = _find(base, base_revision)
    except OptionError as error:
        raise CheckpointError(
            f"{adapter} is a LoRA adapter, and its model is not here",
            expected=f"{base}, as adapter_config.json names it: a directory or a hub id",
            found="neither",
            fix=f"write the model's directory to base_model_name_or_path in "
            f"{adapter / 'adapter_config.json'}",
        ) from error
    check_adapter(adapter)
    joined = join_adapter(adapter, source.path)
    return ModelSource(Path(joined.name), model_id, revision, (*source.joined, joined))
