"""Small settings of the families that cut pictures into tiles, and pictures of all shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

SIZES = {  # width, height
    "wide": (120, 30),
    "tall": (30, 120),
    "square": (40, 40),
    "landscape": (64, 48),
    "portrait": (45, 61),
    "tiny": (3, 2),
    "larger than every grid": (333, 250),
    "sliver": (400, 3),
    "upright sliver": (2, 300),
    "a pinpoint": (32, 32),
}

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
NEXT_GRIDS = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
ONEVISION_GRIDS = [[20 * rows, 20 * columns] for rows in range(1, 5) for columns in range(1, 5)]

NEXT_FACTS: dict[str, Any] = {
    "image_token": "<image>",
    "image_size": 16,
    "patch_size": 4,
    "pinpoints": NEXT_GRIDS,
}
NEXT_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "LlavaNextImageProcessor",
    "image_grid_pinpoints": NEXT_GRIDS,
    "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16},
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "do_pad": True,
    "resample": 3,
}
NEXT_VIDEO_FACTS = {**NEXT_FACTS, "video_token": "<video>"}
ONEVISION_FACTS: dict[str, Any] = {
    "image_token": "<image>",
    "video_token": "<video>",
    "image_size": 20,
    "patch_size": 4,
    "pinpoints": ONEVISION_GRIDS,
    "max_tiles": 2,
}
ONEVISION_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "LlavaOnevisionImageProcessor",
    "image_grid_pinpoints": ONEVISION_GRIDS,
    "size": {"height": 20, "width": 20},
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.5, 0.5],
    "do_pad": True,
    "resample": 3,
}


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture (width, height) in which no two patches are alike."""
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(levels)
