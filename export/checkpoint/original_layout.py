"""A checkpoint of LLaVA's original code, put together with its tower in transformers' form.

    config.json, tokenizer, weights of the checkpoint ─┐
    config.json, image processor, weights of the tower ├─► a directory of links to the weights,
    template of the conversation                       ┘   with the small files written anew

No weight is copied: names are translated when they are read, by the family's `canonical_name`.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from divprune.export.checkpoint.adapter_source import link_files
from divprune.export.checkpoint.files import read_json_if_there, read_json_object, weight_files
from divprune.export.checkpoint.original_templates import Conversation, conversation_of
from divprune.export.checkpoint.preprocessing import load_tokenizer, no_tokenizer
from divprune.export.checkpoint.tensor_file import stored_tensors
from divprune.runtime.directory.config_ranges import check_config
from divprune.runtime.errors import CheckpointError
from divprune.runtime.families._original_llava import translate

__all__ = ["join_original"]

logger = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_IMAGE, _VIDEO = "<image>", "<video>"
_TOWER_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
_TOWER_HEAD = re.compile(r"vision_model\.head\.")
# Of the checkpoint's own files those that are written anew, or whose content is in the index.
_REPLACED = ("config.json", "*.index.json", "*.safetensors", "*.bin", "preprocessor_config.json")
_PROCESSORS = {
    "llava_next": "LlavaNextImageProcessor",
    "llava_onevision": "LlavaOnevisionImageProcessor",
}


def join_original(
    path: Path, content: Mapping[str, Any], find_tower: Callable[[bool], Path]
) -> tempfile.TemporaryDirectory[str]:
    """A directory in transformers' form, in which the weights are links.

    Args:
        path: Directory of the checkpoint.
        content: Of its ``config.json``, which `is_original`.
        find_tower: Gives the tower's directory; asked whether its weights are needed.

    Raises:
        UnsupportedError: naming what transformers' LLaVA has not.
        CheckpointError: for files that are missing or damaged.
    """
    keys = {file: _keys(file) for file in weight_files(path)}
    has_tower = any(_TOWER_LAYER.search(key) for names in keys.values() for key in names)
    tower = find_tower(not has_tower)
    links = {f"checkpoint-{file.name}": file for file in keys}
    if not has_tower:
        found = {file: _keys(file) for file in weight_files(tower)}
        links |= {f"tower-{file.name}": file for file in found}
        keys |= found
    folder = tempfile.TemporaryDirectory(prefix="divprune-original-")
    joined = Path(folder.name)
    link_files(joined, links)
    link_files(joined, {file.name: file for file in _others(path)})
    of_file = {file: name for name, file in links.items()}
    index = {key: of_file[file] for file, names in keys.items() for key in names}
    _write(joined / _INDEX, {"weight_map": index})
    _write_small_files(joined, path, content, tower, [*index])
    return folder


def _keys(file: Path) -> list[str]:
    return [tensor.key for tensor in stored_tensors(file)]


def _others(path: Path) -> list[Path]:
    """The checkpoint's files that are taken as they are; those of an adapter are among them."""
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    taken = [f for f in files if not any(f.match(pattern) for pattern in _REPLACED)]
    adapter = ("adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin")
    return taken + [f for f in files if f.name in adapter]


def _write_small_files(
    joined: Path, path: Path, content: Mapping[str, Any], tower: Path, keys: Sequence[str]
) -> None:
    """Config, image processor, tokenizer, chat template and generation config."""
    layers = [int(match[1]) for key in keys if (match := _TOWER_LAYER.search(key))]
    config = translate(
        content,
        read_json_object(tower / "config.json"),
        tower_layers=1 + max(layers, default=-1),
        tower_has_head=any(_TOWER_HEAD.search(key) for key in keys),
    )
    check_config(config)
    _write(joined / "config.json", config)  # the tokenizer's class is found by it
    try:
        tokenizer = load_tokenizer(joined)
    except CheckpointError as error:
        raise no_tokenizer(path, str(error.found)) from error
    conversation = conversation_of(tokenizer, config["text_config"]["model_type"])
    visual = _add_visual_tokens(tokenizer, config["model_type"])
    _write(joined / "config.json", {**config, **visual})
    _write_tokenizer(joined, tokenizer)
    _write(joined / "preprocessor_config.json", _processor(tower, content, config))
    framed = content.get("mm_use_im_start_end") is True
    picture = f"<im_start>{_IMAGE}<im_end>" if framed else _IMAGE
    _write_template(joined, conversation, picture + _gap(tokenizer, picture))
    stored = read_json_if_there(joined / "generation_config.json") or {}
    _write(joined / "generation_config.json", _with_end(stored, config, tokenizer, conversation))


def _add_visual_tokens(tokenizer: Any, model_type: str) -> dict[str, int]:
    """Give the placeholders numbers: the original code has -200, which no tokenizer writes.

    Behind the last row of the embedding table or not: a placeholder's row is never read.
    """
    from tokenizers import AddedToken

    texts = {"image_token_index": _IMAGE}
    if model_type == "llava_onevision":
        texts["video_token_index"] = _VIDEO
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in texts.values()])
    return {key: tokenizer.convert_tokens_to_ids(text) for key, text in texts.items()}


def _write_tokenizer(joined: Path, tokenizer: Any) -> None:
    tokenizer.chat_template = None  # of the decoder alone
    with tempfile.TemporaryDirectory(dir=joined) as saved:
        for file in map(Path, tokenizer.save_pretrained(saved)):
            file.replace(joined / file.name)  # in place of the link, not through it


def _processor(
    tower: Path, content: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The tower's image processor, with what the original code does in front of it."""
    own = read_json_if_there(tower / "preprocessor_config.json")
    if own is None:
        raise CheckpointError(
            "the vision tower does not say how pictures are prepared",
            expected=f"{tower / 'preprocessor_config.json'}",
            found="no such file",
            fix="download the tower again, with its preprocessor_config.json",
        )
    has_crop = config["vision_config"]["model_type"] == "clip_vision_model"
    options = {"do_center_crop": has_crop, "default_to_square": False, **own}
    named = options.pop("image_processor_type", options.pop("feature_extractor_type", None))
    kind = _PROCESSORS.get(config["model_type"])
    if kind is not None:
        grids = config["image_grid_pinpoints"]
        return {**options, "image_processor_type": kind, "image_grid_pinpoints": grids}
    if content.get("image_aspect_ratio") == "pad":
        return {**options, "image_processor_type": "LlavaImageProcessor", "do_pad": True}
    default = "CLIPImageProcessor" if has_crop else "SiglipImageProcessor"
    return {**options, "image_processor_type": named or default}


def _gap(tokenizer: Any, picture: str) -> str:
    """What stands between a picture and the text behind it: nothing, or a space.

    The original code tokenises that text on its own, and a Llama's tokenizer writes a space in
    front of a text: behind a placeholder as well, or (``legacy`` off) not.
    """

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    alone = ids(picture) + ids("\nWhat")
    return next((gap for gap in ("", " ") if ids(f"{picture}{gap}\nWhat") == alone), "")


def _write_template(joined: Path, conversation: Conversation, picture: str) -> None:
    """The conversation's template, unless the checkpoint has one that knows pictures."""
    own = joined / "chat_template.jinja"
    if own.is_file() and "image" in own.read_text(encoding="utf-8", errors="replace"):
        return
    logger.warning(
        "the original code keeps no chat template in a checkpoint: that of %s is taken, as its"
        " tokenizer suggests; a chat_template.jinja in the directory takes its place",
        conversation.name,
    )
    own.unlink(missing_ok=True)
    own.write_text(conversation.template(picture), encoding="utf-8")


def _with_end(
    stored: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Any,
    conversation: Conversation,
) -> dict[str, Any]:
    """The generation config with the token that ends a turn among those that end an answer."""
    given = stored.get("eos_token_id", config["text_config"].get("eos_token_id"))
    given = tokenizer.eos_token_id if given is None else given
    ends = [*given] if isinstance(given, list) else [given]
    if conversation.end is not None:
        ends.append(tokenizer.convert_tokens_to_ids(conversation.end))
    known = [end for end in dict.fromkeys(ends) if end is not None]
    return {**stored, "eos_token_id": known or None}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.unlink(missing_ok=True)  # a link: its target is the user's
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
