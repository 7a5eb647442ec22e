"""Resizing in bands gives Pillow's own pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.inputs import resizing
from divprune.runtime.inputs.resizing import resize

SIZES = [(64, 48), (48, 64), (50, 50), (200, 3), (3, 200), (7, 90), (1, 1)]
FILTERS = [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("resample", FILTERS)
@pytest.mark.parametrize("old", SIZES)
@pytest.mark.parametrize("new", [(40, 30), (30, 40), (21, 100), (100, 21), (128, 96)])
def test_bands_of_any_height_give_the_pixels_of_pillow(
    old: tuple[int, int], new: tuple[int, int], resample: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = np.asarray(noise(*old).resize(new, resample))
    for pixels in (1, 333, 1 << 30):
        monkeypatch.setattr(resizing, "_BAND_PIXELS", pixels)
        found = resize(noise(*old), new, resample)
        assert np.array_equal(np.asarray(found), expected)


def test_large_picture_is_resized_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, asked = noise(1600, 1200), []
    run_each = resizing.run_each

    def counted(function, items):
        asked.append(len(items))
        return run_each(function, items)

    monkeypatch.setattr(resizing, "run_each", counted)
    found = resize(picture, (448, 336), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(found), np.asarray(picture.resize((448, 336), 3)))
    assert asked[0] > 1


def test_version_whose_order_is_unknown_resizes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing.PIL, "__version__", "99.0")
    monkeypatch.setattr(resizing, "run_each", None)
    found = resize(noise(1600, 1200), (448, 336), Image.Resampling.BICUBIC)
    assert found.size == (448, 336)


def test_picture_of_that_size_is_itself() -> None:
    picture = noise(5, 4)
    assert resize(picture, (5, 4), Image.Resampling.BICUBIC) is picture
