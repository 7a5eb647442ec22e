"""LLaVA-1.6 (LLaVA-NeXT): a base view and tiles, every token one row of the projector."""

from __future__ import annotations

from typing import ClassVar

from divprune.runtime.errors import UnsupportedError
from divprune.runtime.families._anyres_family import AnyresFamily
from divprune.runtime.families.protocol import Prepared, VideoFrames

__all__ = ["FAMILY", "LlavaNext"]


class LlavaNext(AnyresFamily):
    """Pictures only."""

    name: ClassVar[str] = "llava_next"

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """Refuse: the family was trained on pictures."""
        del video, num_frames, num_media
        raise UnsupportedError(
            "this model takes no videos",
            expected="pictures",
            found="a video",
            fix="give single frames as pictures, or export a model for videos such as "
            "llava-next-video-7b",
        )


FAMILY = LlavaNext
