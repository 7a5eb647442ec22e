"""What the files of a checkpoint look like, a class for each kind of family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.export.checkpoint.random.families.base import CheckpointFiles, Layout
from divprune.export.checkpoint.random.families.internvl import InternVLFiles
from divprune.export.checkpoint.random.families.llava import LlavaFiles
from divprune.export.checkpoint.random.families.qwen_vl import QwenVLFiles
from divprune.export.checkpoint.random.families.smolvlm import SmolVLMFiles
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["CheckpointFiles", "Layout", "files_of"]

_KINDS: dict[str, type[CheckpointFiles]] = {
    "idefics3": SmolVLMFiles,
    "internvl": InternVLFiles,
    "llava": LlavaFiles,
    "llava_next": LlavaFiles,
    "llava_next_video": LlavaFiles,
    "llava_onevision": LlavaFiles,
    "qwen2_5_vl": QwenVLFiles,
    "qwen2_vl": QwenVLFiles,
    "qwen3_vl": QwenVLFiles,
    "smolvlm": SmolVLMFiles,
}


def files_of(config: PreTrainedConfig, layout: Layout) -> CheckpointFiles:
    """The files of a model in one of the layouts in use.

    Raises:
        UnsupportedError: for a model type, or a layout of it, that cannot be written.
    """
    kind = _KINDS.get(config.model_type)
    if kind is None:
        raise UnsupportedError(
            f"random checkpoints of {config.model_type} cannot be written",
            expected="a model type of " + ", ".join(_KINDS),
            found=config.model_type,
        )
    if layout not in kind.layouts:
        raise UnsupportedError(
            f"{config.model_type} has no layout {layout}",
            expected=" or ".join(kind.layouts),
            found=layout,
        )
    return kind(config, layout)
