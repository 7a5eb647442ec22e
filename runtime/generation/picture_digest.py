"""Tell pictures and videos apart by their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from divprune.runtime.families import VideoFrames
from divprune.runtime.inputs.threads import run_each

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["digest_of"]

_BAND_PIXELS = 1 << 18


def digest_of(content: Image.Image | VideoFrames, context: Sequence[Hashable]) -> bytes:
    """SHA-256 of the pixels of a picture or video, and of what else decides about its tokens.

    Args:
        content: The picture, or the video: by its fingerprint where it has one.
        context: How it will be prepared, and for whom.
    """
    digest = hashlib.sha256(repr(tuple(context)).encode())
    if not isinstance(content, VideoFrames):
        digest.update(_pixels(content))
        return digest.digest()
    digest.update(f"video {content.fps!r}".encode())
    if content.fingerprint is not None:
        digest.update(content.fingerprint)
    else:
        for frame in content.frames:
            digest.update(_pixels(frame))
    return digest.digest()


def _pixels(picture: Image.Image) -> bytes:
    """The digests of bands of a picture: several are computed at a time, and copies stay small."""
    width, height = picture.size
    rows = max(1, _BAND_PIXELS // width)
    name = f"{picture.mode} {picture.size}".encode()

    def digest(top: int) -> bytes:
        band = picture.crop((0, top, width, min(top + rows, height)))
        return hashlib.sha256(band.tobytes()).digest()

    return name + b"".join(run_each(digest, range(0, height, rows)))
