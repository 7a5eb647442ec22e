"""What checkpoints of original code have in common: files linked, and small ones written anew."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from divprune.export.checkpoint.adapter_source import link_files
from divprune.export.checkpoint.files import read_json_if_there
from divprune.export.checkpoint.original.conversations import Conversation
from divprune.export.checkpoint.preprocessing import load_tokenizer, no_tokenizer
from divprune.export.checkpoint.tensor_file import stored_tensors
from divprune.runtime.errors import CheckpointError

__all__ = [
    "link_others",
    "link_weights",
    "own_template",
    "own_tokenizer",
    "stored_keys",
    "write_generation_config",
    "write_json",
    "write_template",
    "write_tokenizer",
]

_INDEX = "model.safetensors.index.json"
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
# Those that are written anew, or whose content is in the index.
_REPLACED = ("config.json", "*.index.json", "*.safetensors", "*.bin", "preprocessor_config.json")


def stored_keys(file: Path) -> list[str]:
    """Names of the tensors in a weight file.

    Raises:
        CheckpointError: if it is damaged.
    """
    return [tensor.key for tensor in stored_tensors(file)]


def link_weights(joined: Path, links: Mapping[str, Path], keys: Mapping[Path, list[str]]) -> None:
    """Link weight files and write the index of their tensors.

    Args:
        joined: Directory that they are put into.
        links: The files by the names that they get.
        keys: Names of the tensors in each file.
    """
    link_files(joined, links)
    index = {key: name for name, file in links.items() for key in keys[file]}
    write_json(joined / _INDEX, {"weight_map": index})


def link_others(joined: Path, checkpoint: Path, replaced: Sequence[str] = ()) -> None:
    """Link the files that are taken as they are; those of an adapter are among them.

    Args:
        joined: Directory that they are put into.
        checkpoint: Directory that has them.
        replaced: Further files that are written anew.
    """
    patterns = (*_REPLACED, *replaced)
    files = [file for file in sorted(checkpoint.iterdir()) if file.is_file()]
    taken = [f for f in files if not any(f.match(pattern) for pattern in patterns)]
    taken += [f for f in files if f.name in _ADAPTER]
    link_files(joined, {file.name: file for file in taken})


def own_tokenizer(joined: Path, checkpoint: Path) -> Any:
    """The tokenizer of a joined directory, whose ``config.json`` is there.

    Raises:
        CheckpointError: naming the checkpoint, if there is none that can be used.
    """
    try:
        return load_tokenizer(joined)
    except CheckpointError as error:
        raise no_tokenizer(checkpoint, str(error.found)) from error


def write_tokenizer(joined: Path, tokenizer: Any) -> None:
    """Save it as transformers does, without the chat template of the decoder alone."""
    tokenizer.chat_template = None
    with tempfile.TemporaryDirectory(dir=joined) as saved:
        for file in map(Path, tokenizer.save_pretrained(saved)):
            file.replace(joined / file.name)  # in place of the link, not through it


def own_template(joined: Path, mark: str) -> bool:
    """Whether the checkpoint has a chat template that knows pictures: has ``mark`` in it."""
    own = joined / "chat_template.jinja"
    return own.is_file() and mark in own.read_text(encoding="utf-8", errors="replace")


def write_template(joined: Path, conversation: Conversation, picture: str) -> None:
    """The template of a conversation, in which a picture is written as ``picture``."""
    own = joined / "chat_template.jinja"
    own.unlink(missing_ok=True)
    own.write_text(conversation.template(picture), encoding="utf-8")


def write_generation_config(
    joined: Path, config: Mapping[str, Any], tokenizer: Any, end: str | None
) -> None:
    """The generation config with the token that ends a turn among those that end an answer.

    Args:
        joined: Directory, with the generation config of the checkpoint if it has one.
        config: Content of ``config.json`` in transformers' form.
        tokenizer: As transformers loads it.
        end: The token that ends a turn; None where it is the tokenizer's end of sequence.
    """
    stored = read_json_if_there(joined / "generation_config.json") or {}
    given = stored.get("eos_token_id", config["text_config"].get("eos_token_id"))
    given = tokenizer.eos_token_id if given is None else given
    ends = [*given] if isinstance(given, list) else [given]
    if end is not None:
        ends.append(tokenizer.convert_tokens_to_ids(end))
    known = [each for each in dict.fromkeys(ends) if each is not None]
    write_json(joined / "generation_config.json", {**stored, "eos_token_id": known or None})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file in place of a link, whose target is the user's."""
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
