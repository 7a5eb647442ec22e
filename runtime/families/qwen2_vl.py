"""Qwen2-VL: patches of 14 pixels, time of a video in its positions."""

from __future__ import annotations

from typing import ClassVar

from divprune.runtime.families._qwen_pixels import fit_size
from divprune.runtime.families._qwen_vision import QwenVision

__all__ = ["FAMILY", "Qwen2VL"]

_SAMPLED_FPS, _MIN_FRAMES = 2, 4


class Qwen2VL(QwenVision):
    """A video is one span; a step of time is one position."""

    name: ClassVar[str] = "qwen2_vl"

    def sample(self, total: int, fps: float, asked: int | None, most: int) -> list[int]:
        """Every so many frames from the first, an even number of them.

        Two a second and at least 4 where none are asked for.
        """
        assert self.videos is not None
        moments = self.videos.moments
        most = min(most, total)
        if asked is None:
            count = int(min(max(total / fps * _SAMPLED_FPS, _MIN_FRAMES), most))
            count = count // moments * moments
        else:
            count = min(round(asked / moments) * moments, most)
        if count < 1:
            return [0]
        return [int(index * total / count) for index in range(count)]

    def video_size(self, width: int, height: int, num_frames: int) -> tuple[int, int]:
        """The area of each frame is bounded."""
        assert self.videos is not None
        factor, steps = self.videos.factor, -(-num_frames // self.videos.moments)
        area = self.videos.area.at_most(self.max_tokens * factor**2 // steps)
        return fit_size(width, height, factor, area)


FAMILY = Qwen2VL
