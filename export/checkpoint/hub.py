"""Download what an export needs of a repository on the hub, and say why that failed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from divprune.configs import suggest_preset
from divprune.runtime.errors import CheckpointError, DivPruneError, OptionError

__all__ = [
    "CONFIGS",
    "PICKLES",
    "WEIGHTS",
    "download_command",
    "nearest_preset",
    "page_of",
    "snapshot",
]

logger = logging.getLogger(__name__)

CONFIGS = ("*.json", "*.jinja", "*.txt", "tokenizer.model")
WEIGHTS = ("model*.safetensors", "adapter_model.safetensors", "non_lora_trainables.bin")
PICKLES = ("pytorch_model*.bin", "adapter_model.bin")
"""What is taken where there are no safetensors."""

_IGNORED = ("*/*",)  # other people's conversions (onnx/, gguf/) lie in folders


def snapshot(model_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The directory of a repository in the hub's cache, downloaded as far as it is not there.

    Args:
        model_id: ``org/name``.
        revision: Branch, tag or commit; None for the main branch.
        patterns: Which files are taken.

    Raises:
        DivPruneError: with the reason and the command that mends it.
    """
    import huggingface_hub

    logger.info("looking for %s (revision %s)", model_id, revision or "main")
    try:
        found = huggingface_hub.snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(_IGNORED),
        )
    except Exception as error:  # errors of the hub, its HTTP client and the file system
        raise _hub_error(model_id, revision, error) from error
    return Path(found)


def nearest_preset(model: str) -> str | None:
    """Advice to take the preset that is spelt almost like ``model``; None without one."""
    guess = suggest_preset(model)
    return None if guess is None else f"--model {guess} if that was meant"


def page_of(model_id: str) -> str:
    """The repository's page on the hub in use (``HF_ENDPOINT``)."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{model_id}"


def download_command(model_id: str, revision: str | None) -> str:
    """The command that downloads a repository as a whole, also where the hub is switched off."""
    from huggingface_hub import constants

    command = f"hf download {model_id}" + (f" --revision {revision}" if revision else "")
    return f"HF_HUB_OFFLINE=0 {command}" if constants.HF_HUB_OFFLINE else command


def _hub_error(model_id: str, revision: str | None, error: Exception) -> DivPruneError:
    """The reason for a failed download and the command that mends it."""
    from huggingface_hub import constants, errors

    url = page_of(model_id)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, errors.HFValidationError):
        return OptionError(
            f"{model_id} is not a hub id",
            expected="org/name",
            found=reason,
            fix=nearest_preset(model_id),
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
            fix=download_command(model_id, revision),
        )
    return CheckpointError(
        f"{model_id} could not be downloaded",
        found=f"{type(error).__name__}: {reason}",
        fix=download_command(model_id, revision),
    )
