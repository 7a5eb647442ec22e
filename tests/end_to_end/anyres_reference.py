"""LLaVA-1.6, LLaVA-NeXT-Video and LLaVA-OneVision in transformers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.end_to_end.reference import Media, Reference

__all__ = ["AnyresReference"]


class AnyresReference(Reference):
    """Pictures through the model's image processor, videos as frames of one crop each.

    transformers' own video processors need torchvision; their steps are those of one crop.
    """

    def features(self, media: Media) -> list[torch.Tensor]:
        """Pictures of one request go through together: OneVision looks at how many there are."""
        pictures = [each for each in media if isinstance(each, Image.Image)]
        of_pictures = iter(self._pictures(pictures) if pictures else [])
        return [
            next(of_pictures) if isinstance(each, Image.Image) else self._video(each)
            for each in media
        ]

    def _pictures(self, pictures: list[Image.Image]) -> list[torch.Tensor]:
        is_onevision = self.model.config.model_type == "llava_onevision"
        kind: Any = LlavaOnevisionImageProcessorPil if is_onevision else LlavaNextImageProcessorPil
        inputs = kind(**self._image_options())([pictures], return_tensors="pt")
        features = self.model.get_image_features(**inputs).pooler_output
        return list(features)

    def _video(self, frames: tuple[Image.Image, ...]) -> torch.Tensor:
        options = self._image_options()
        options = {key: options[key] for key in options if key != "image_grid_pinpoints"}
        is_onevision = self.model.config.model_type == "llava_onevision"
        kind: Any = SiglipImageProcessorPil if is_onevision else CLIPImageProcessorPil
        options["do_pad"] = False
        pixels = kind(**options)(list(frames), return_tensors="np")["pixel_values"]
        video = torch.from_numpy(np.asarray(pixels))[None]
        features: torch.Tensor = self.model.get_video_features(video).pooler_output[0]
        return features

    def _image_options(self) -> dict[str, Any]:
        path = self.checkpoint / "preprocessor_config.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            nested = self.checkpoint / "processor_config.json"
            content = json.loads(nested.read_text(encoding="utf-8"))["image_processor"]
        return {key: content[key] for key in content if not key.endswith(("_type", "_class"))}
