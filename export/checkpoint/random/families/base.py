"""What every family's checkpoint files have in common.

``hub`` is the layout of the repositories on the hub, ``v4`` that of transformers 4.52 to 4.57,
``v5`` that of transformers 5. They differ in tensor names, in the spelling of config.json, and in
where the chat template and the processors' configs are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from divprune.export.checkpoint.random.tokenizer import byte_level_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig

__all__ = ["CheckpointFiles", "Layout", "class_name"]

Layout = Literal["hub", "v4", "v5"]


class CheckpointFiles(ABC):
    """The files of one model in one layout, beside its weights.

    Attributes:
        layouts: Those that the family has.
        config: As transformers has it.
        layout: How it is written.
    """

    layouts: ClassVar[tuple[Layout, ...]] = ("hub", "v5")

    def __init__(self, config: PreTrainedConfig, layout: Layout) -> None:
        self.config: Any = config
        self.layout = layout

    @property
    @abstractmethod
    def chat_template(self) -> str:
        """The template of a conversation."""

    @abstractmethod
    def stored_name(self, canonical: str) -> str:
        """The key of the tensor with this canonical name."""

    @abstractmethod
    def fixed_tokens(self) -> dict[int, str]:
        """Special tokens at their ids."""

    @abstractmethod
    def named_tokens(self) -> dict[str, str]:
        """What tokenizer_config.json calls special tokens; ``eos_token`` ends a turn."""

    @abstractmethod
    def image_processor(self) -> dict[str, Any]:
        """What preprocessor_config.json says."""

    def video_processor(self) -> dict[str, Any] | None:
        """What video_preprocessor_config.json says; None where there is none."""
        return None

    def processor(self) -> dict[str, Any]:
        """What processor_config.json says of both."""
        return {"processor_class": class_name(self.config, "Processor")}

    def config_json(self) -> dict[str, Any]:
        """What config.json says."""
        return dict(self.config.to_diff_dict())

    def tokenizer(self) -> Tokenizer:
        """One in which every id of the vocabulary decodes to something."""
        return byte_level_tokenizer(self.config.text_config.vocab_size, self.fixed_tokens())

    @property
    def eos_id(self) -> int:
        """The first token that ends an answer."""
        ids = self.config.text_config.eos_token_id
        return int(ids[0] if isinstance(ids, list) else ids)


def class_name(config: PreTrainedConfig, role: str) -> str:
    """Transformers' name of a class that goes with a config."""
    return type(config).__name__.replace("Config", role)
