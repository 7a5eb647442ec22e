"""Find the checkpoint that ``--model`` names: a preset, a directory, or a hub repository."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from divprune.configs import list_presets, load_preset, refuse_ambiguous, suggest_preset
from divprune.export.checkpoint.adapter import check_adapter
from divprune.export.checkpoint.adapter_source import base_of_adapter, join_adapter
from divprune.runtime.directory import bounded_json
from divprune.runtime.directory.path_text import check_utf8
from divprune.runtime.errors import CheckpointError, DivPruneError, OptionError

__all__ = [
    "ALLOW_PATTERNS",
    "IGNORE_PATTERNS",
    "ModelSource",
    "read_json_if_there",
    "read_json_object",
    "resolve_model",
    "weight_files",
]

logger = logging.getLogger(__name__)

ALLOW_PATTERNS = (
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "model*.safetensors",
    "adapter_model.safetensors",
)
IGNORE_PATTERNS = ("*/*",)  # other people's conversions (onnx/, gguf/) lie in folders
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint on this machine and where it came from.

    Attributes:
        path: Directory with config.json and safetensors.
        model_id: Hub id, or a local directory as ``--model`` takes it (never a bare name).
        revision: Commit hash on the hub; ``None`` for a local directory.
        joined: What keeps ``path`` while this is in use, where an adapter was put together with
            its model.
    """

    path: Path
    model_id: str
    revision: str | None
    joined: TemporaryDirectory[str] | None = None


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
    path = Path(model).expanduser()
    if model in list_presets():
        hub_id = load_preset(model).hub_id
        refuse_ambiguous(model, f"--model ./{model}", f"--model {hub_id}")
        return _from_hub(hub_id, revision)
    if model and path.exists():
        return _from_directory(path, _as_path(model), revision)
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return _from_hub(model, revision)
    raise OptionError(
        f"--model {model} is not a preset, a directory or a hub id",
        expected=f"a preset ({', '.join(list_presets())}), an existing directory, "
        "or a hub id of the form org/name",
        found=model,
        fix=_nearest(model),
    )


def _as_path(model: str) -> str:
    """The directory as it was given, so written that nobody takes it for a preset or a hub id."""
    if model in (".", ".."):
        return str(Path(model).resolve())
    is_plain = Path(model).is_absolute() or model.startswith(("./", "../", "~"))
    return model if is_plain else f"./{model}"


def _nearest(model: str) -> str | None:
    guess = suggest_preset(model)
    return None if guess is None else f"--model {guess} if that was meant"


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
            fix="give the directory that holds config.json and the safetensors files",
        )
    weight_files(path)
    return ModelSource(path, name, None)


def _from_hub(model_id: str, revision: str | None) -> ModelSource:
    import huggingface_hub

    logger.info("looking for %s (revision %s)", model_id, revision or "main")
    try:
        snapshot = huggingface_hub.snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=list(ALLOW_PATTERNS),
            ignore_patterns=list(IGNORE_PATTERNS),
        )
    except Exception as error:  # errors of the hub, its HTTP client and the file system
        raise _hub_error(model_id, revision, error) from error
    path = Path(snapshot)
    base = base_of_adapter(path)
    if base is not None:
        return _with_base(path, model_id, path.name, *base)
    if (problem := _problem(path)) is not None and not _answers(model_id, revision):
        raise CheckpointError(
            f"the copy of {model_id} in the cache is not whole",
            expected="a transformers checkpoint",
            found=problem,
            fix=_download_command(model_id, revision),
        )
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{model_id} has no config.json",
            expected="a repository with a transformers checkpoint",
            found=f"{path} without it",
            fix=f"give the model that this one was made from: {_page_of(model_id)} names it",
        )
    weight_files(path, model_id)
    return ModelSource(path, model_id, path.name)


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
    folder = Path(base).expanduser()
    if folder.is_dir() and base_of_adapter(folder) is not None:
        raise CheckpointError(
            f"{adapter} is an adapter of another adapter",
            expected="a model with weights of its own in base_model_name_or_path",
            found=base,
            fix="merge the first adapter into its model, and name that in adapter_config.json",
        )
    try:
        source = resolve_model(base, base_revision)
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
    return ModelSource(Path(joined.name), model_id, revision, joined)


def _hub_error(model_id: str, revision: str | None, error: Exception) -> DivPruneError:
    """The reason for a failed download and the command that mends it."""
    from huggingface_hub import constants, errors

    url = _page_of(model_id)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, errors.HFValidationError):
        return OptionError(
            f"{model_id} is not a hub id", expected="org/name", found=reason, fix=_nearest(model_id)
        )
    if isinstance(error, errors.GatedRepoError):
        fix = f"accept the terms at {url}, then: hf auth login"
        return CheckpointError(f"access to {model_id} is gated", found=reason, fix=fix)
    if isinstance(error, errors.RepositoryNotFoundError):
        fix = f"check the name at {url}; if it is private: hf auth login"
        return CheckpointError(f"the hub has no {model_id}", found=reason, fix=fix)
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(
            f"{model_id} has no revision {revision}",
            found=reason,
            fix=f"take a branch, tag or commit from {url}/commits/main",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        is_off = constants.HF_HUB_OFFLINE
        why = "the hub is switched off (HF_HUB_OFFLINE)" if is_off else "the hub is out of reach"
        return CheckpointError(
            f"{model_id} is not in the local cache, and {why}",
            expected=f"revision {revision or 'main'} in the cache, or a connection",
            found=reason,
            fix=_download_command(model_id, revision),
        )
    return CheckpointError(
        f"{model_id} could not be downloaded",
        found=f"{type(error).__name__}: {reason}",
        fix=_download_command(model_id, revision),
    )


def _page_of(model_id: str) -> str:
    """The repository's page on the hub in use (``HF_ENDPOINT``)."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model_id}"


def _download_command(model_id: str, revision: str | None) -> str:
    """What downloads it, also where the hub is switched off."""
    from huggingface_hub import constants

    command = f"hf download {model_id}" + (f" --revision {revision}" if revision else "")
    return f"HF_HUB_OFFLINE=0 {command}" if constants.HF_HUB_OFFLINE else command


def weight_files(path: Path, model: str | None = None) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint directory, through the index if there is one.

    Args:
        path: Checkpoint directory.
        model: How the user named it, for the conversion command in errors.

    Raises:
        CheckpointError: if a shard is missing, or there are only ``pytorch_model.bin`` files
            (the error gives the command that converts them).
    """
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if single.is_file():  # wins over an index, as in transformers
        return (single,)
    if index.is_file():
        return _indexed_files(index)
    if any(path.glob("pytorch_model*.bin")) or model is not None:
        raise CheckpointError(
            f"{path} has no safetensors weights",
            expected="model.safetensors, or shards with model.safetensors.index.json",
            found=", ".join(sorted(entry.name for entry in path.glob("*.bin"))) or "no weights",
            fix=_conversion_command(model or str(path)),
        )
    raise CheckpointError(
        f"{path} has no weights",
        expected="model.safetensors, or shards with model.safetensors.index.json",
        found=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing",
        fix="download the checkpoint again",
    )


def _indexed_files(index: Path) -> tuple[Path, ...]:
    content = read_json_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map", fix="download the checkpoint again")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(
                f"{index} names a shard outside its directory", expected="file names", found=name
            )
        if not (index.parent / name).is_file():
            raise CheckpointError(
                f"the shard {index.parent / name} is missing",
                expected=f"{len(names)} shards, as {index.name} lists them",
                found=f"{sum((index.parent / name).is_file() for name in names)} of them",
                fix="download the checkpoint again",
            )
    return tuple(index.parent / name for name in names)


def _conversion_command(model: str) -> str:
    target = Path(model).name + "-safetensors"
    return (
        'python -c "from transformers import AutoProcessor, AutoModelForImageTextToText as M; '
        f"M.from_pretrained({model!r}, dtype='auto').save_pretrained({target!r}); "
        f'AutoProcessor.from_pretrained({model!r}).save_pretrained({target!r})"'
    )


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
