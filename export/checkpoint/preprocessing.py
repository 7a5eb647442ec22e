"""How a checkpoint prepares what goes in: its tokenizer and its image processor's config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from divprune.export.checkpoint.files import read_json_if_there
from divprune.runtime.errors import CheckpointError

__all__ = ["load_tokenizer", "no_tokenizer", "read_preprocessor_config"]

# The largest vocabularies have a quarter of a million tokens. Tokenizers counts up to the largest
# number when it writes its file, whatever lies between.
_MAX_TOKEN_ID = 1 << 24


def load_tokenizer(checkpoint: Path) -> Any:
    """The checkpoint's tokenizer as transformers loads it.

    Raises:
        CheckpointError: if it has none that can be used.
    """
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:  # transformers lets errors of many libraries through
        raise no_tokenizer(checkpoint, f"{type(error).__name__}: {error}") from error
    token, highest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if highest > _MAX_TOKEN_ID:
        raise no_tokenizer(checkpoint, f"the token {token!r} with the number {highest}")
    return tokenizer


def no_tokenizer(checkpoint: Path, found: str) -> CheckpointError:
    """Say that no tokenizer can be used, why, and what to do about it."""
    old = not (checkpoint / "tokenizer.json").exists() and (checkpoint / "tokenizer.model").exists()
    return CheckpointError(
        "the checkpoint has no tokenizer that can be used",
        expected=f"tokenizer.json and tokenizer_config.json in {checkpoint}",
        found=found,
        fix="pip install sentencepiece, which converts tokenizer.model"
        if old
        else "copy both files of the original model into the directory",
    )


def read_preprocessor_config(checkpoint: Path, config: Any) -> dict[str, Any]:
    """How pictures are prepared, and videos under ``video_processor`` where that is said.

    Transformers 5 nests both in processor_config.json; older checkpoints have a file each. An
    image processor that does not name its type is the model's own, as transformers reads it.

    Raises:
        CheckpointError: if nothing is said of pictures.
    """
    nested = read_json_if_there(checkpoint / "processor_config.json") or {}
    found = nested.get("image_processor") or read_json_if_there(
        checkpoint / "preprocessor_config.json"
    )
    if not isinstance(found, dict):
        raise CheckpointError(
            "the checkpoint does not say how pictures are prepared",
            expected="preprocessor_config.json, or image_processor in processor_config.json",
            found=f"neither in {checkpoint}",
            fix="copy preprocessor_config.json of the original model into the directory",
        )
    if not (found.get("image_processor_type") or found.get("feature_extractor_type")):
        found = {**found, "image_processor_type": _own_processor(config.model_type)}
    video = nested.get("video_processor") or read_json_if_there(
        checkpoint / "video_preprocessor_config.json"
    )
    return found if video is None else {**found, "video_processor": video}


def _own_processor(model_type: str) -> str:
    """The image processor that transformers takes for a model type."""
    from transformers.models.auto import image_processing_auto

    names: Any = image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]
    # One name for each way of computing; they differ in an ending that is not written.
    name = next(iter(names.get(model_type, {}).values()), None)
    if name is None:
        raise CheckpointError(
            "the config of the image processor does not name its type",
            expected="image_processor_type in preprocessor_config.json",
            found=f"none, and transformers knows no default for {model_type}",
            fix="copy preprocessor_config.json of the original model into the directory",
        )
    return str(name)
