"""Pictures and videos are told apart by their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.families import VideoFrames
from divprune.runtime.generation import picture_digest
from divprune.runtime.generation.picture_digest import digest_of


def levels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_digest, "_BAND_PIXELS", 100)


@pytest.mark.parametrize("place", [(0, 0), (2, 29), (3, 0), (39, 29)])
def test_every_pixel_counts(place: tuple[int, int]) -> None:
    picture, other = Image.fromarray(levels()), levels()
    other[place] ^= 1
    assert digest_of(picture, ()) == digest_of(picture.copy(), ())
    assert digest_of(picture, ()) != digest_of(Image.fromarray(other), ())


def test_shape_context_and_kind_count() -> None:
    picture = Image.fromarray(levels())
    others = {
        digest_of(Image.fromarray(levels().reshape(30, 40, 3)), ()),
        digest_of(picture, ("scope",)),
        digest_of(VideoFrames((picture,), 1.0), ()),
        digest_of(VideoFrames((picture,), 2.0), ()),
        digest_of(VideoFrames((picture, picture), 2.0), ()),
        digest_of(VideoFrames((picture,), 2.0, b"fingerprint"), ()),
    }
    assert len(others | {digest_of(picture, ())}) == 7
