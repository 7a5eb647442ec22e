"""The finished model as a checkpoint directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from models.small_scenes.checkpoint_files import write_side_files

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

__all__ = ["save_checkpoint"]


def save_checkpoint(model: LlavaForConditionalGeneration, directory: Path) -> None:
    """Write weights in fp16, config and everything a processor needs; ``model`` becomes fp16."""
    import torch

    directory.mkdir(parents=True, exist_ok=True)
    text = model.config.text_config
    model.generation_config.bos_token_id = text.bos_token_id
    model.generation_config.eos_token_id = text.eos_token_id
    model.generation_config.pad_token_id = text.pad_token_id
    model.to(torch.float16).save_pretrained(directory)
    write_side_files(directory)
