"""What differs between model families at export: one module a family, behind one protocol.

A module ``export/families/<model_type>.py`` defines ``FAMILY``, a class that is made from the
checkpoint's config. Its counterpart at run time is ``runtime/families/<name>.py``; what both
must agree on is ``facts()``, which the manifest carries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from divprune.runtime.directory.manifest_records import TowerInfo

__all__ = ["Family", "VisionInput"]


@dataclass(frozen=True, slots=True)
class VisionInput:
    """One input of the vision graph: sizes are numbers, or names of dimensions that vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Family(Protocol):
    """One model family, bound to one config.

    Attributes:
        name: The family at run time: a module of ``runtime/families``.
        position_axes: 1, or 3 for multimodal rotary positions (time, height, width).
        positions: What ``--positions`` may be, the default first.
        tower_prefix: How canonical names of the linear layers begin that ``--vision-quant``
            is about.
        joined_rows: Linear layers of a layout that hold several ones of transformers', one behind
            the other along their outputs: how their names end, and the endings of those.
    """

    name: ClassVar[str]
    position_axes: ClassVar[int]
    positions: ClassVar[tuple[str, ...]]
    tower_prefix: ClassVar[str]
    joined_rows: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, config: PreTrainedConfig) -> None:
        """Bind to a config.

        Raises:
            UnsupportedError: naming the first setting that cannot be carried out.
        """
        ...

    @staticmethod
    def check(content: Mapping[str, Any]) -> None:
        """Check ``config.json`` before transformers reads it.

        Raises:
            UnsupportedError: naming the architecture.
        """
        ...

    @staticmethod
    def canonical_name(key: str) -> str:
        """The one name a tensor goes by, whatever layout ``key`` is from.

        Empty for a tensor that is no part of the model, such as the text half beside a tower.
        The decoder's are ``language_model.embed_tokens.weight``, ``language_model.layers.0…``,
        ``language_model.norm.weight`` and ``lm_head.weight`` in every family. Parameters of
        ``vision_module`` become names of the checkpoint through it too.
        """
        ...

    @property
    def text_config(self) -> PreTrainedConfig:
        """The config of the decoder."""
        ...

    @property
    def vision_model(self) -> str:
        """The kind of the vision tower, as transformers calls it."""
        ...

    @property
    def image_token_id(self) -> int:
        """The token that stands for a visual token of a picture in a prompt."""
        ...

    @property
    def video_token_id(self) -> int | None:
        """The same for a video; None where the family takes none."""
        ...

    @property
    def tied_head(self) -> bool:
        """Whether the output layer is the embedding table."""
        ...

    @property
    def tower(self) -> TowerInfo:
        """The vision tower, as far as it runs."""
        ...

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of the visual tokens where every picture has the same; else None."""
        ...

    @property
    def signals(self) -> frozenset[str]:
        """Names of ``selection.SIGNALS`` that the tower can give."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the runtime module needs, as JSON.

        The export adds ``image_token`` and ``video_token``: the texts of those tokens, or None.
        ``video_template``, where it is there, is the chat template of conversations with a video.
        """
        ...

    def vision_inputs(self) -> tuple[VisionInput, ...]:
        """Inputs of the vision module, in order; ``pixel_values`` first."""
        ...

    def vision_outputs(self) -> tuple[str, ...]:
        """Names of further float [N, hidden] outputs behind the features (DeepStack), if any."""
        ...

    def unused_tensors(self) -> frozenset[str]:
        """Beginnings of the canonical names of tensors that may stay unread.

        An export refuses a checkpoint with any other tensor that no graph reads.
        """
        ...

    def vision_module(self, signals: Sequence[str] = ()) -> torch.nn.Module:
        """A module without weights (meta device): the vision inputs to features [N, hidden].

        It gathers and pools by the index inputs that the runtime module makes. It returns the
        features alone, or a tuple: features, ``vision_outputs``, then ``signals`` [N] or [N, E].
        """
        ...

    def resized_vision_module(self, image_size: tuple[int, int]) -> torch.nn.Module:
        """The vision module for pictures of another size, where all have one (``patch_grid``).

        Raises:
            UnsupportedError: where they have not.
        """
        ...

    def projector_module(self) -> torch.nn.Module:
        """What follows the tower, alone: rows [K, V] to [K, hidden]; the same parameter names."""
        ...
