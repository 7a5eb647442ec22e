"""A picture for the end-to-end tests."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """A landscape picture with noise and shapes: no two patches are alike."""
    noise = np.random.default_rng(7).integers(0, 255, (90, 140, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    draw.rectangle((10, 15, 50, 60), fill=(200, 30, 40))
    draw.ellipse((70, 20, 120, 70), fill=(30, 60, 220))
    return image
