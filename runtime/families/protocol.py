"""What differs between model families at run time, without torch.

A family turns a picture or a video into what its vision graph takes, says by what text it is
written into the prompt, and numbers the rows of the prompt for the rotary embedding. What the
export had to settle for it stands in the manifest as ``model.facts``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from divprune.runtime.inputs.video_frames import VideoFrames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from divprune.runtime.directory.manifest_records import DimRange
    from divprune.runtime.families.dimensions import ModelDimensions

__all__ = ["Family", "MediaKind", "Prepared", "TokenMap", "VideoFrames"]

MediaKind = Literal["image", "video"]


@dataclass(frozen=True)
class TokenMap:
    """Where each visual token lies.

    Attributes:
        boxes: float32 [N, 4]: left, top, right, bottom in pixels of the upright picture, or of
            the frame; NaN for a token of no place, such as a learned newline.
        panels: int64 [N]: index into ``panel_names``.
        panel_names: For a picture the views that overlap (``whole``, ``tiles``); for a video one
            a frame, such as ``frame 3``.
    """

    boxes: NDArray[np.float32]
    panels: NDArray[np.int64]
    panel_names: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """One picture or video, as the vision graph and the prompt take it.

    Attributes:
        kind: What it is.
        inputs: Every input of the vision graph but ``kept_slots``, by name.
        num_tokens: N, its visual tokens before pruning.
        text: What stands for it in the rendered prompt: the family's visual token once for every
            run of visual tokens, with the text between them.
        runs: Visual tokens of each run; their sum is N.
        grid: Merged rows the positions need: (time, height, width); None where tokens simply
            follow one another.
        token_map: Makes the map of the tokens; only a drawing asks for it.
        note: What a user should know, such as that the picture was scaled down; or None.
        frames: Of a video, which frames ``token_map`` has a panel for, in its order.
    """

    kind: MediaKind
    inputs: Mapping[str, NDArray[Any]]
    num_tokens: int
    text: str
    runs: tuple[int, ...]
    token_map: Callable[[], TokenMap]
    grid: tuple[int, int, int] | None = None
    note: str | None = None
    frames: tuple[int, ...] = ()


class Family(Protocol):
    """One family, bound to one engine directory.

    Attributes:
        name: The module's name, as the manifest spells it.
        request_sensitive: How a picture is prepared depends on how many there are in the
            request.
        placeholders: For each kind that the family takes, the text that the chat template
            writes where one stands and that ``Prepared.text`` replaces.
        default_frames: Frames taken of a video where none are asked for.
    """

    name: ClassVar[str]
    request_sensitive: ClassVar[bool]
    default_frames: ClassVar[int]
    placeholders: Mapping[MediaKind, str]

    @classmethod
    def from_facts(
        cls,
        facts: Mapping[str, Any],
        preprocessor: Mapping[str, Any],
        max_image_tokens: int | None,
    ) -> Family:
        """Read what the export wrote.

        Args:
            facts: ``model.facts`` of the manifest.
            preprocessor: The content of ``preprocessor_config.json``; a video processor's
                config stands under ``video_processor``.
            max_image_tokens: Largest N of a picture; None leaves it to the family.

        Raises:
            UnsupportedError: naming the option that cannot be carried out.
            CheckpointError: if facts and preprocessor disagree.
        """
        ...

    @staticmethod
    def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
        """The shape of the model that a ``config.json`` describes, before it is exported.

        Args:
            name: What the user calls the model.
            content: ``config.json``; a preset has the part of it that matters.

        Raises:
            UnsupportedError: for a kind of decoder or tower that cannot be exported.
            CheckpointError: for a number that is missing or none.
        """
        ...

    def dims(self) -> Mapping[str, DimRange]:
        """Range of every named dimension of the vision graph's inputs.

        ``tokens`` is among them where N varies; ``kept`` is added by the export.
        """
        ...

    def count_tokens(self, width: int, height: int) -> int:
        """N of a single picture of that size, in pixels."""
        ...

    def prepare_image(self, picture: Image.Image, num_media: int = 1) -> Prepared:
        """One picture of a request with ``num_media`` pictures; videos do not count.

        Raises:
            ImageError: if it is too elongated or too small to be prepared.
        """
        ...

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """One video, of which the family takes ``num_frames`` frames.

        Raises:
            UnsupportedError: if the family takes no videos.
        """
        ...

    def positions(
        self, is_visual: NDArray[np.bool_], media: Sequence[Prepared]
    ) -> tuple[NDArray[np.int64], int]:
        """Positions of an *unpruned* prompt.

        Args:
            is_visual: [L], True where the row is a visual token.
            media: Pictures and videos in the order in which they stand in the prompt.

        Returns:
            int64 [axes, L] and the position of the first token of the answer.
        """
        ...
