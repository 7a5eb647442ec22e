"""Write the host's files: embedding table, tokenizer, chat template, image facts."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from divprune.export.checkpoint.checkpoint import EMBEDDINGS
from divprune.export.checkpoint.files import read_json_if_there
from divprune.export.checkpoint.preprocessing import no_tokenizer, read_preprocessor_config
from divprune.export.checkpoint.weights import WeightSource
from divprune.runtime.directory.bounded_json import MAX_JSON_BYTES, read_bounded
from divprune.runtime.errors import CheckpointError
from divprune.runtime.generation.generation_config import describe_left_out

__all__ = ["write_embeddings", "write_host_files"]

logger = logging.getLogger(__name__)

# In the order in which transformers looks; where several differ, the first one is the model's.
_TEMPLATE_FILES = (
    "processor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer_config.json",
)


def write_embeddings(directory: Path, weights: WeightSource) -> None:
    """Write ``embed_tokens.safetensors``: one tensor ``embed_tokens`` [vocabulary, hidden]."""
    from safetensors.numpy import save_file

    table = np.ascontiguousarray(weights.read(EMBEDDINGS))
    path = directory / "embed_tokens.safetensors"
    save_file({"embed_tokens": table}, path)
    path.chmod(0o644)  # safetensors makes files that only their owner can read


def write_host_files(checkpoint: Path, directory: Path, config: Any, tokenizer: Any) -> None:
    """Write tokenizer, chat template, generation config and image processor config.

    Raises:
        CheckpointError: naming the file that is missing and what to do about it.
    """
    _write_tokenizer(tokenizer, checkpoint, directory, config)
    template = _chat_template(checkpoint)
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(directory / "generation_config.json", _generation_config(checkpoint, config))
    _write_json(
        directory / "preprocessor_config.json", read_preprocessor_config(checkpoint, config)
    )


def _write_tokenizer(tokenizer: Any, checkpoint: Path, directory: Path, config: Any) -> None:
    """Write the tokenizer as transformers would use it.

    Not a copy of the checkpoint's files: transformers changes what they say while loading (a
    pre-tokenizer for ``legacy: false``, a BOS for ``add_bos_token``) and old ones have no
    tokenizer.json at all.
    """
    with tempfile.TemporaryDirectory(dir=directory) as saved:
        tokenizer.save_pretrained(saved)
        if not Path(saved, "tokenizer.json").is_file():
            raise no_tokenizer(checkpoint, f"{type(tokenizer).__name__}, written in Python")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(saved, name), directory / name)
    _warn_of_tokens_without_embedding(tokenizer, config)


def _warn_of_tokens_without_embedding(tokenizer: Any, config: Any) -> None:
    """Say which tokens a prompt must not contain: they have no row in the embedding table.

    A placeholder needs none: features stand in its place.
    """
    rows = config.text_config.vocab_size
    beyond = {index: token for token, index in tokenizer.get_vocab().items() if index >= rows}
    for name in ("image_token_id", "video_token_id"):
        beyond.pop(getattr(config, name, None), None)
    if beyond:
        names = [beyond[index] for index in sorted(beyond)]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        logger.warning(
            "the tokenizer has %d tokens (%s) beyond the %d rows of the embedding table: a prompt"
            " with one of them is refused; model.resize_token_embeddings(%d) makes room, if the"
            " model was trained with them",
            len(names),
            shown,
            rows,
            max(beyond) + 1,
        )


def _chat_template(checkpoint: Path) -> str:
    """The template that transformers' processor takes; without one, the tokenizer's."""
    for name in _TEMPLATE_FILES:
        template = _stored_template(checkpoint / name)
        if template is not None:
            return template
    raise CheckpointError(
        "the checkpoint has no chat template",
        expected="a template in one of " + ", ".join(_TEMPLATE_FILES),
        found=f"none of them in {checkpoint}",
        fix="write the model's template to chat_template.jinja there",
    )


def _stored_template(path: Path) -> str | None:
    if not path.is_file():
        return None
    if path.suffix == ".jinja":
        return _read_text(path)
    template = (read_json_if_there(path) or {}).get("chat_template")
    if isinstance(template, list):
        entries = (entry for entry in template if isinstance(entry, dict))
        named = {entry.get("name"): entry.get("template") for entry in entries}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _generation_config(checkpoint: Path, config: Any) -> dict[str, Any]:
    stored = read_json_if_there(checkpoint / "generation_config.json") or {}
    if stored.get("eos_token_id") is None:
        eos = getattr(config, "eos_token_id", None)
        eos = config.text_config.eos_token_id if eos is None else eos
        if eos is None:
            raise CheckpointError(
                "no end-of-sequence token is known",
                expected="eos_token_id in generation_config.json or config.json",
                fix="write it to the checkpoint's generation_config.json",
            )
        stored = {**stored, "eos_token_id": eos}
    for sentence in describe_left_out(stored):
        logger.warning("%s", sentence)
    return stored


def _read_text(path: Path) -> str:
    try:
        return read_bounded(path, MAX_JSON_BYTES, error=CheckpointError).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text", found=error) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
