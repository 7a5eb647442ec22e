"""How SmolVLM2 samples videos, and the text in which it puts their frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from divprune.runtime.errors import CheckpointError, OptionError
from divprune.runtime.families._tiles import image_options, video_options
from divprune.runtime.families.protocol import VideoFrames

__all__ = ["VideoSampling", "need_fps", "number_in_words", "video_text"]

_SKIPPED_S = 1.0
_ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_ONES += ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"]
_ONES += ["eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


@dataclass(frozen=True)
class VideoSampling:
    """Which frames are taken.

    Attributes:
        fps: Frames a second.
        max_frames: Most frames.
        longest_edge: What the longer edge of a frame is resized to before it becomes a square;
            None where that is as for pictures.
    """

    fps: float
    max_frames: int
    longest_edge: int | None

    @classmethod
    def from_config(cls, preprocessor: Mapping[str, Any], *, asked: bool) -> VideoSampling:
        """Read ``video_sampling``, or what newer files have in its place.

        ``asked`` says that the user gave the number of frames: then it need not be stated.

        Raises:
            CheckpointError: if the checkpoint does not say how videos are sampled.
        """
        options = video_options(preprocessor)
        old = options.get("video_sampling") or image_options(preprocessor).get("video_sampling")
        stated = dict(old) if isinstance(old, Mapping) else {}
        fps = stated.get("fps", options.get("fps"))
        frames = stated.get("max_frames", options.get("num_frames"))
        if (fps is None or frames is None) and not asked:
            raise CheckpointError(
                "the checkpoint does not say how many frames of a video it takes",
                expected="video_sampling in preprocessor_config.json, or fps and num_frames in "
                "video_preprocessor_config.json",
                fix="--num-frames 8",
            )
        size = stated.get("video_size") or options.get("size") or {}
        edge = size.get("longest_edge") if isinstance(size, Mapping) else None
        return cls(float(fps or 1), int(frames or 1), edge)

    def choose(self, total: int, fps: float, num_frames: int | None) -> list[int]:
        """Indices of the frames, ascending, each once.

        ``fps`` is that of the ``total`` frames. Without ``num_frames`` as many are taken as
        the rate gives, up to ``max_frames``. A second at both ends of a long video is left out.
        """
        if num_frames is not None and num_frames >= total:
            return list(range(total))
        most = self.max_frames if num_frames is None else num_frames
        duration = total / fps
        rated = max(round(self.fps * duration), 1)
        count = min(rated, most) if num_frames is None else num_frames
        first, last = 0, total - 1
        if duration - 2 * _SKIPPED_S > most * self.fps:
            first = int(_SKIPPED_S * fps)
            last = min(int(total - _SKIPPED_S * fps), total - 1)
        if first >= last:
            first, last = 0, total - 1
        indices: list[int] = np.unique(np.linspace(first, last, count, dtype=int)).tolist()
        return indices


def need_fps(video: VideoFrames) -> float:
    """Frames a second of a video.

    Raises:
        OptionError: if it is a folder or an animation without times.
    """
    if video.fps is None:
        raise OptionError(
            "this model writes the time of every frame into the prompt, and the frames have none",
            expected="a video file, or the frames a second",
            found="a folder of frames or an animation without times",
            fix="--fps 1 if the frames are a second apart",
        )
    return video.fps


def video_text(indices: Sequence[int], fps: float, total: int, frame: str) -> str:
    """The prompt's text for a video of ``total`` frames of which ``indices`` were taken."""
    duration = timedelta(seconds=int(total / fps))
    count = number_in_words(len(indices))
    lines = [f"You are provided the following series of {count} frames from a {duration} "]
    lines.append("[H:MM:SS] video.\n")
    for index in indices:
        minutes, seconds = divmod(index / fps, 60)
        lines.append(f"\nFrame from {int(minutes):02d}:{int(seconds):02d}:{frame}")
    return "".join(lines) + "\n\n"


def number_in_words(number: int) -> str:
    """British English for 0 to 999 999, as num2words spells it."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    count, rest = divmod(number, unit)
    head = f"{number_in_words(count)} {name}"
    if not rest:
        return head
    return head + (" and " if rest < 100 else ", ") + number_in_words(rest)
