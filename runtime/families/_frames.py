"""Videos of LLaVA-NeXT-Video and LLaVA-OneVision: frames as crops, each pooled 2 x 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np

from divprune.runtime.directory.manifest_records import DimRange
from divprune.runtime.errors import OptionError
from divprune.runtime.families._anyres_family import AnyresFamily, crop_map
from divprune.runtime.families._packing import Packing, concatenate, newline, repeat
from divprune.runtime.families.protocol import Prepared, TokenMap, VideoFrames

__all__ = ["FramesFamily", "sample_frames"]


def sample_frames(total: int, count: int) -> list[int]:
    """Which ``count`` of ``total`` frames to take: evenly from the first; all, if no more."""
    if total <= count:
        return list(range(total))
    return [int(index) for index in np.arange(0, total, total / count)[:count]]


class FramesFamily(AnyresFamily):
    """A family that takes videos beside pictures; the index has four rows a token.

    Attributes:
        has_end: Whether a newline ends the video.
    """

    taps = 4
    has_end: ClassVar[bool]

    def frame_packing(self) -> Packing:
        """The tokens of one frame over its patches."""
        raise NotImplementedError

    @property
    def max_frames(self) -> int:
        """Frames for which the graph has room: as many tokens as the limit or a picture has."""
        largest = super().dims()["tokens"].maximum
        room = self.limit or max(largest, self._frame_tokens(self.default_frames))
        return (room - self.has_end) // self._frame_tokens(1, end=False)

    def dims(self) -> Mapping[str, DimRange]:
        """Ranges of ``crops`` and ``tokens``, from one frame on."""
        ranges = super().dims()
        crops, tokens = ranges["crops"], ranges["tokens"]
        shortest, longest = (self._frame_tokens(count) for count in (1, self.max_frames))
        return {
            "crops": replace(crops, minimum=1, maximum=max(crops.maximum, self.max_frames)),
            "tokens": replace(
                tokens,
                minimum=min(tokens.minimum, shortest),
                maximum=max(tokens.maximum, longest),
            ),
        }

    def prepare_video(
        self, video: VideoFrames, num_frames: int | None = None, num_media: int = 1
    ) -> Prepared:
        """Frames ``pixel_values`` float32 [frames, 3, side, side] and the index of the tokens.

        Raises:
            OptionError: if the directory has no room for that many frames, or none is asked for.
        """
        del num_media
        wanted = min(self.default_frames, self.max_frames) if num_frames is None else num_frames
        if not 1 <= wanted <= self.max_frames:
            raise OptionError(
                "this engine directory cannot take that many frames of a video",
                expected=f"--num-frames from 1 to {self.max_frames}",
                found=wanted,
                fix=f"export again with --max-image-tokens {self._frame_tokens(wanted)}"
                if wanted > 1
                else None,
            )
        places = sample_frames(len(video.frames), wanted)
        packing = self._pack_frames(len(places))
        # One after another: a video decodes its frames as they are asked for.
        frames = [self.processors.frame.fit(video.frames[place]) for place in places]
        pixels = self.processors.frame.levels.planes(frames)
        token_map = partial(self._frame_map, video.frames[places[0]].size, packing)
        prepared = self._prepared("video", pixels, packing, token_map)
        return replace(prepared, frames=tuple(int(place) for place in places))

    def _pack_frames(self, count: int) -> Packing:
        patches = self.grids.cells**2
        packing = repeat(self.frame_packing(), count, patches)
        if not self.has_end:
            return packing
        end = replace(newline(patches * count, self.taps), views=np.array([count - 1]))
        return concatenate([packing, end])

    def _frame_tokens(self, count: int, *, end: bool = True) -> int:
        return count * len(self.frame_packing()) + (self.has_end and end)

    def _frame_map(self, size: tuple[int, int], packing: Packing) -> TokenMap:
        boxes = crop_map(self.processors.frame, size, packing, self.grids.patch)
        names = tuple(f"frame {number}" for number in range(int(packing.views.max()) + 1))
        return TokenMap(boxes, packing.views, names)
