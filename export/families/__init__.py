"""What differs between model families, one module a family.

A family turns a checkpoint's config into the module that makes image features and into the
facts the rest of the exporter needs. Adding one means adding a module and a registry line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from divprune.export.families.llava import LlavaFamily
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

__all__ = ["Family", "get_family"]


class Family(Protocol):
    """One model family, bound to one config."""

    name: str

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the decoder."""
        ...

    @property
    def vision_model(self) -> str:
        """The kind of the vision tower, as transformers calls it."""
        ...

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels that the tower takes."""
        ...

    @property
    def image_token_id(self) -> int:
        """The token that stands for a picture in a prompt."""
        ...

    @property
    def tied_head(self) -> bool:
        """Whether the output layer is the embedding table."""
        ...

    @property
    def patch_size(self) -> int:
        """Side of the square patches that the tower cuts its input into, in pixels."""
        ...

    @property
    def signals(self) -> frozenset[str]:
        """Names of ``selection.SIGNALS`` that the tower can give."""
        ...

    def image_feature_module(
        self, signals: Sequence[str] = (), image_size: tuple[int, int] | None = None
    ) -> torch.nn.Module:
        """A module without weights (meta device): pixel_values [1, 3, H, W] to [N, hidden].

        With ``signals`` it returns a tuple: the features, then those. ``image_size`` gives the
        tower for smaller pictures. Its parameter names become canonical tensor names through
        ``divprune.export.checkpoint.checkpoint.canonical_name``.
        """
        ...

    def projector_module(self) -> torch.nn.Module:
        """What follows the tower, alone: rows [K, V] to [K, hidden]; the same parameter names."""
        ...


def get_family(config: PreTrainedConfig) -> Family:
    """The family of a config.

    Raises:
        UnsupportedError: listing the families that there are.
    """
    if config.model_type not in _FAMILIES:
        raise UnsupportedError(
            "models of this family cannot be exported yet",
            expected="one of " + ", ".join(sorted(_FAMILIES)),
            found=config.model_type,
        )
    return _FAMILIES[config.model_type](config)


_FAMILIES: dict[str, Callable[[PreTrainedConfig], Family]] = {"llava": LlavaFamily}
