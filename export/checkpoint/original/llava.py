"""A checkpoint of LLaVA's original code, put together with its tower in transformers' form.

    config.json, tokenizer, weights of the checkpoint ─┐
    config.json, image processor, weights of the tower ├─► a directory of links to the weights,
    template of the conversation                       ┘   with the small files written anew

No weight is copied: names are translated when they are read, by the family's `canonical_name`.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from divprune.export.checkpoint.files import read_json_if_there, read_json_object, weight_files
from divprune.export.checkpoint.original.conversations import conversation_of
from divprune.export.checkpoint.original.files import (
    link_others,
    link_weights,
    own_template,
    own_tokenizer,
    stored_keys,
    write_generation_config,
    write_json,
    write_template,
    write_tokenizer,
)
from divprune.runtime.directory.config_ranges import check_config
from divprune.runtime.errors import CheckpointError
from divprune.runtime.families._original_llava import translate

__all__ = ["join_llava"]

logger = logging.getLogger(__name__)

_IMAGE, _VIDEO = "<image>", "<video>"
_TOWER_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.")
_TOWER_HEAD = re.compile(r"vision_model\.head\.")
_PROCESSORS = {
    "llava_next": "LlavaNextImageProcessor",
    "llava_onevision": "LlavaOnevisionImageProcessor",
}


def join_llava(
    path: Path, content: Mapping[str, Any], find_tower: Callable[[bool], Path]
) -> tempfile.TemporaryDirectory[str]:
    """A directory in transformers' form, in which the weights are links.

    Args:
        path: Directory of the checkpoint.
        content: Of its ``config.json``.
        find_tower: Gives the tower's directory; asked whether its weights are needed.

    Raises:
        UnsupportedError: naming what transformers' LLaVA has not.
        CheckpointError: for files that are missing or damaged.
    """
    keys = {file: stored_keys(file) for file in weight_files(path)}
    has_tower = any(_TOWER_LAYER.search(key) for names in keys.values() for key in names)
    tower = find_tower(not has_tower)
    links = {f"checkpoint-{file.name}": file for file in keys}
    if not has_tower:
        found = {file: stored_keys(file) for file in weight_files(tower)}
        links |= {f"tower-{file.name}": file for file in found}
        keys |= found
    folder = tempfile.TemporaryDirectory(prefix="divprune-original-")
    joined = Path(folder.name)
    link_weights(joined, links, keys)
    link_others(joined, path)
    every = [key for names in keys.values() for key in names]
    _write_small_files(joined, path, content, tower, every)
    return folder


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
    write_json(joined / "config.json", config)  # the tokenizer's class is found by it
    tokenizer = own_tokenizer(joined, path)
    conversation = conversation_of(tokenizer, config["text_config"]["model_type"])
    visual = _add_visual_tokens(tokenizer, config["model_type"])
    write_json(joined / "config.json", {**config, **visual})
    write_tokenizer(joined, tokenizer)
    write_json(joined / "preprocessor_config.json", _processor(tower, content, config))
    if not own_template(joined, "image"):
        logger.warning(
            "the original code keeps no chat template in a checkpoint: that of %s is taken, as its"
            " tokenizer suggests; a chat_template.jinja in the directory takes its place",
            conversation.name,
        )
        framed = content.get("mm_use_im_start_end") is True
        picture = f"<im_start>{_IMAGE}<im_end>" if framed else _IMAGE
        write_template(joined, conversation, picture + _gap(tokenizer, picture))
    write_generation_config(joined, config, tokenizer, conversation.end)


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
