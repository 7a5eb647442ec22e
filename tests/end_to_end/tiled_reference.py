"""InternVL, SmolVLM and Idefics3 in transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE
from transformers.video_utils import VideoMetadata

from tests.end_to_end.reference import Media, Reference
from tests.runtime.families.processors import processor

__all__ = ["FPS", "TiledReference"]

FPS = 1.0
"""Frames a second of every video."""


class TiledReference(Reference):
    """Pictures through the model's image processor, videos as frames of one crop each.

    transformers' own video processors need torchvision; the text around the frames is that of
    its processor.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        auto: Any = transformers.AutoImageProcessor
        self.images = auto.from_pretrained(checkpoint)
        kind = type(self.model).__name__.replace("ForConditionalGeneration", "Processor")
        _, length = self._picture(Image.new("RGB", (16, 16)))
        lengths = {"image_seq_length": length, "image_seq_len": length}
        self.processor = processor(kind, self.tokenizer, image_processor=self.images, **lengths)

    def features(self, media: Media) -> list[torch.Tensor]:
        """A picture or video at a time: nothing depends on the others."""
        return [
            self._picture(each)[0] if isinstance(each, Image.Image) else self._video(each)
            for each in media
        ]

    def expand(self, text: str, media: Media, counts: Sequence[int]) -> str:
        """As transformers' processor writes it."""
        for each in media:
            if isinstance(each, Image.Image):
                inputs = self._processed(each) | self._rows_and_columns(each)
                written = self.processor.replace_image_token(inputs, 0)
                text = text.replace(self.processor.image_token, _hidden(written), 1)
            else:
                written = self.processor.replace_video_token(self._video_inputs(each), 0)
                text = text.replace(self.processor.video_token, _hidden(written), 1)
        return _shown(text)

    def template_for(self, media: Media) -> str:
        """SmolVLM has another for conversations with a video."""
        has_video = any(not isinstance(each, Image.Image) for each in media)
        swaps = has_video and self.model.config.model_type == "smolvlm"
        return DEFAULT_CHAT_TEMPLATE if swaps else self.template

    @property
    def decoder(self) -> Any:
        """SmolVLM calls it ``text_model``."""
        return self.model.get_decoder()

    @property
    def _is_internvl(self) -> bool:
        return bool(self.model.config.model_type == "internvl")

    def _processed(self, image: Image.Image, **options: Any) -> dict[str, Any]:
        cutting = {"crop_to_patches": True} if self._is_internvl else {}
        return dict(self.images([image], return_tensors="pt", **cutting | options))

    def _rows_and_columns(self, image: Image.Image) -> dict[str, Any]:
        if self._is_internvl:
            return {}
        found = self.images([image], return_tensors="pt", return_row_col_info=True)
        return {"rows": found["rows"], "cols": found["cols"]}

    def _picture(self, image: Image.Image, **options: Any) -> tuple[torch.Tensor, int]:
        """Features [N, hidden], and how many there are of a crop."""
        pixels = self._processed(image, **options)["pixel_values"]
        with torch.no_grad():
            found = self.model.get_image_features(pixels).pooler_output
        rows = found.flatten(0, 1) if isinstance(found, torch.Tensor) else found[0]
        return rows, len(rows) // pixels.shape[0 if self._is_internvl else 1]

    def _video(self, frames: tuple[Image.Image, ...]) -> torch.Tensor:
        single: dict[str, Any] = {"crop_to_patches": False}
        if not self._is_internvl:
            side = self.images.max_image_size["longest_edge"]
            single = {"do_image_splitting": False, "size": {"longest_edge": side}}
        return torch.cat([self._picture(frame, **single)[0] for frame in frames])

    def _video_inputs(self, frames: tuple[Image.Image, ...]) -> dict[str, Any]:
        count = len(frames)
        indices = list(range(count))
        metadata = VideoMetadata(count, FPS, duration=count / FPS, frames_indices=indices)
        return {
            "pixel_values_videos": [np.zeros((count, 1))],
            "pixel_values": np.zeros((1, count)),
            "video_metadata": [metadata],
        }


def _hidden(text: str) -> str:
    """Text in which no placeholder is found again."""
    return "".join(chr(ord(character) + 0xF0000) for character in text)


def _shown(text: str) -> str:
    return "".join(chr(ord(c) - 0xF0000) if ord(c) >= 0xF0000 else c for c in text)
