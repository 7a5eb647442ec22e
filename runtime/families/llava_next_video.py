"""LLaVA-NeXT-Video: pictures as LLaVA-1.6, and frames of 144 tokens.

Frames are pooled on the tower's features, before the projector, which is why the graph gathers
there; the learned newline of a picture is put in behind the projector.
"""

from __future__ import annotations

from typing import ClassVar

from divprune.runtime.families._frames import FramesFamily
from divprune.runtime.families._packing import Packing, average

__all__ = ["FAMILY", "LlavaNextVideo"]


class LlavaNextVideo(FramesFamily):
    """Frames as means of 2 x 2 patches, one after another."""

    name: ClassVar[str] = "llava_next_video"
    has_end: ClassVar[bool] = False

    def frame_packing(self) -> Packing:
        """Means of 2 x 2 patches."""
        return average((self.grids.cells, self.grids.cells))


FAMILY = LlavaNextVideo
