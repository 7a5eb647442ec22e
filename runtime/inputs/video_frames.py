"""The frames of a video, as a model family takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["VideoFrames"]


@dataclass(frozen=True)
class VideoFrames:
    """Frames of a video in the order of time, not yet sampled by a family.

    Attributes:
        frames: RGB pictures of one size. They may be decoded as they are asked for, fastest in
            ascending order.
        fps: Frames a second of ``frames``; None for a folder or an animation without times.
        fingerprint: Equal for equal videos; None where the frames themselves have to tell.
    """

    frames: Sequence[Image.Image]
    fps: float | None
    fingerprint: bytes | None = None
