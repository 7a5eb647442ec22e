"""A checkpoint of InternVL's original code in transformers' form.

The weights are links: their names are translated when they are read, and the joined queries, keys
and values of the tower taken apart, as the family says (`canonical_name`, ``joined_rows``).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divprune.export.checkpoint.files import weight_files
from divprune.export.checkpoint.original.conversations import INTERNVL_2_5
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
from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families._original_internvl import tile_range, translate

__all__ = ["join_internvl"]

logger = logging.getLogger(__name__)

_VISUAL = ("<img>", "</img>", "<IMG_CONTEXT>")
# The original code prepares pictures itself: what these say is for the tower alone.
_PROCESSORS = ("processor_config.json", "video_preprocessor_config.json")
_IMAGENET_MEAN, _IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BICUBIC = 3


def join_internvl(path: Path, content: Mapping[str, Any]) -> tempfile.TemporaryDirectory[str]:
    """A directory in transformers' form, in which the weights are links.

    Args:
        path: Directory of the checkpoint.
        content: Of its ``config.json``.

    Raises:
        UnsupportedError: naming what transformers' InternVL has not, or for a conversation that
            is not known.
        CheckpointError: for files that are missing or damaged.
    """
    config = translate(content)
    check_config(config)
    keys = {file: stored_keys(file) for file in weight_files(path)}
    folder = tempfile.TemporaryDirectory(prefix="divprune-original-")
    joined = Path(folder.name)
    link_weights(joined, {f"checkpoint-{file.name}": file for file in keys}, keys)
    link_others(joined, path, _PROCESSORS)
    write_json(joined / "config.json", config)  # the tokenizer's class is found by it
    tokenizer = own_tokenizer(joined, path)
    image_token_id = _image_token_id(tokenizer)
    write_json(joined / "config.json", translate(content, image_token_id=image_token_id))
    write_tokenizer(joined, tokenizer)
    write_json(joined / "preprocessor_config.json", _processor(content, config))
    _write_template(joined, content)
    write_generation_config(joined, config, tokenizer, INTERNVL_2_5.end)
    return folder


def _image_token_id(tokenizer: Any) -> int:
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in _VISUAL if token not in vocabulary]
    if missing:
        raise CheckpointError(
            "the tokenizer does not know the tokens of pictures",
            expected=", ".join(_VISUAL),
            found="no " + ", ".join(missing),
            fix="copy the tokenizer's files of the model that it was fine-tuned from into the "
            "checkpoint: tokenizer.json and tokenizer_config.json, or vocab.json, merges.txt, "
            "added_tokens.json and tokenizer_config.json",
        )
    return int(vocabulary[_VISUAL[-1]])


def _processor(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Tiles as the original code cuts them; its own file is about a tile alone."""
    size = config["vision_config"]["image_size"]
    fewest, most = tile_range(content)
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": fewest,
        "max_patches": most,
        "size": {"height": size, "width": size},
        "resample": _BICUBIC,
        "image_mean": _IMAGENET_MEAN,
        "image_std": _IMAGENET_STD,
        "rescale_factor": 1 / 255,
        **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), True),
    }


def _write_template(joined: Path, content: Mapping[str, Any]) -> None:
    """The conversation that config.json names, unless there is a template that knows pictures."""
    picture = _VISUAL[-1]
    if own_template(joined, picture):
        return
    if content.get("template") != INTERNVL_2_5.name:
        raise UnsupportedError(
            "the conversation that this InternVL was trained on is not known",
            expected=f"template {INTERNVL_2_5.name} in config.json, or chat_template.jinja",
            found=f"template {content.get('template')}",
            fix="write the conversation to chat_template.jinja in the checkpoint, with "
            f"{picture} where a picture stands",
        )
    if (joined / "chat_template.jinja").is_file():
        logger.warning(
            "chat_template.jinja does not write %s: the conversation %s that config.json names is"
            " taken in its place",
            picture,
            INTERNVL_2_5.name,
        )
    write_template(joined, INTERNVL_2_5, picture)
