"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from tests.end_to_end.reference import Media, Reference

__all__ = ["FPS", "QwenReference"]

FPS = 2.0
"""Frames a second of the videos, all of whose frames are taken."""


class QwenReference(Reference):
    """Pictures through the model's image processor; a video's frames through it two by two.

    transformers' own video processors need torchvision; what they make of frames that keep their
    size is what the image processor makes of each, one moment of time behind the other.

    Args:
        checkpoint: Its directory.
        max_tokens: Visual tokens of the largest picture.
    """

    def __init__(self, checkpoint: Path, max_tokens: int) -> None:
        super().__init__(checkpoint)
        file = checkpoint / "preprocessor_config.json"
        nested = not file.exists()
        content = json.loads((checkpoint / "processor_config.json" if nested else file).read_text())
        options = content["image_processor"] if nested else content
        options = {key: options[key] for key in options if not key.endswith("_type")}
        cell = (options["patch_size"] * options["merge_size"]) ** 2
        bound = min(options["size"]["longest_edge"], max_tokens * cell)
        options["size"] = {**options["size"], "longest_edge": bound}
        self.processor: Any = Qwen2VLImageProcessorPil(**options)
        self._planes: list[list[torch.Tensor]] = []

    def features(self, media: Media) -> list[torch.Tensor]:
        """Features; the planes of each are kept for ``decoder_inputs``."""
        self._planes, features = [], []
        for each in media:
            pixels, grid = self._pixels(each)
            found = self.model.get_image_features(pixels, torch.tensor([grid]))
            features.append(found.pooler_output[0])
            planes = getattr(found, "deepstack_features", None) or []
            self._planes.append([plane[0] for plane in planes])
        return features

    def decoder_inputs(self, is_visual: torch.Tensor, kept: Sequence[np.ndarray]) -> dict[str, Any]:
        """DeepStack's rows of the kept tokens."""
        if not any(self._planes):
            return {}
        of_media = [
            [plane[torch.from_numpy(indices)] for plane in planes]
            for planes, indices in zip(self._planes, kept, strict=True)
        ]
        planes = [torch.cat(rows) for rows in zip(*of_media, strict=True)]
        return {"visual_pos_masks": is_visual[None], "deepstack_visual_embeds": planes}

    def expand(self, text: str, media: Media, counts: Sequence[int]) -> str:
        """As the model's processor does; Qwen3-VL writes the time of every two frames."""
        parts: list[str] = []
        for each, count in zip(media, counts, strict=True):
            token = self._placeholder(each)
            head, found, text = text.partition(token)
            assert found
            parts.append(head + self._span(each, token, count))
        return "".join(parts) + text

    def positions(self, ids: torch.Tensor, media: Media) -> torch.Tensor:
        """``get_rope_index`` of the model."""
        image, video = self.visual_ids()
        kinds = (ids == image).int() + 2 * (ids == video).int()
        grids: dict[str, Any] = {}
        for each in media:
            name = "image_grid_thw" if isinstance(each, Image.Image) else "video_grid_thw"
            grids.setdefault(name, []).append(self._pixels(each)[1])
        given: dict[str, Any] = {name: torch.tensor(value) for name, value in grids.items()}
        if self.model.config.model_type == "qwen2_5_vl" and "video_grid_thw" in given:
            given["second_per_grid_ts"] = torch.tensor([2 / FPS] * len(given["video_grid_thw"]))
        found, _ = self.model.model.get_rope_index(ids[None], kinds[None], **given)
        positions: torch.Tensor = found[:, 0]
        return positions

    def _span(self, medium: Any, token: str, count: int) -> str:
        if isinstance(medium, Image.Image) or self.model.config.model_type != "qwen3_vl":
            return token * count
        indices: Any = list(range(len(medium)))
        times = Qwen3VLProcessor._calculate_timestamps(None, indices, FPS, 2)  # type: ignore[arg-type]
        each = token * (count // len(times))
        return "".join(f"<{t:.1f} seconds><|vision_start|>{each}<|vision_end|>" for t in times)

    def _pixels(self, medium: Any) -> tuple[torch.Tensor, list[int]]:
        """Patch rows, and patches in time, height and width."""
        if isinstance(medium, Image.Image):
            found = self.processor(medium, return_tensors="pt")
            return found["pixel_values"], found["image_grid_thw"][0].tolist()
        frames = [*medium, *([medium[-1]] * (len(medium) % 2))]
        processed = self.processor(frames, return_tensors="pt")
        grids = processed["image_grid_thw"]
        steps, (_, height, width) = len(frames) // 2, grids[0].tolist()
        patch = self.processor.patch_size
        rows = processed["pixel_values"].reshape(steps, 2, height * width, 3, 2, patch, patch)
        pairs = torch.stack([rows[:, 0, :, :, 0], rows[:, 1, :, :, 1]], dim=3)
        return pairs.reshape(steps * height * width, -1), [steps, height, width]
