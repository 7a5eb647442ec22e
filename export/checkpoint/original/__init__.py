"""Checkpoints in the layouts of the code that models were first published with."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from divprune.export.checkpoint.original.internvl import join_internvl
from divprune.export.checkpoint.original.llava import join_llava
from divprune.runtime.families import _original_internvl, _original_llava

__all__ = ["join_original"]

logger = logging.getLogger(__name__)


def join_original(
    path: Path, content: Mapping[str, Any], find_tower: Callable[[str, bool], Path]
) -> tempfile.TemporaryDirectory[str] | None:
    """A directory in transformers' form, in which the weights are links.

    Args:
        path: Directory of a checkpoint.
        content: Of its ``config.json``.
        find_tower: Gives the directory of a tower by its name; told whether its weights are
            needed.

    Returns:
        None for a checkpoint in another layout.

    Raises:
        UnsupportedError: naming what transformers' model has not.
        CheckpointError: for files that are missing or damaged.
    """
    if _original_internvl.is_original(content):
        logger.warning(
            "the checkpoint is in the layout of InternVL's original code: it is converted while it"
            " is read"
        )
        return join_internvl(path, content)
    if _original_llava.is_original(content):
        name = _original_llava.tower_name(content)
        logger.warning(
            "the checkpoint is in the layout of LLaVA's original code: it is converted while it is"
            " read, with the tower %s",
            name,
        )
        return join_llava(path, content, lambda with_weights: find_tower(name, with_weights))
    return None
