"""Pictures and videos that were encoded before, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from divprune.runtime.generation.encoded_image import EncodedImage

__all__ = ["PictureCache"]


class PictureCache:
    """The latest encoded pictures, by the digest of their pixels; the oldest goes first.

    Safe to use from several threads.

    Args:
        max_bytes: Of all features together; 0 keeps nothing.

    Attributes:
        num_bytes: Of what is kept now.
        hits: How often a picture was there.
        misses: How often it was not.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._encoded: OrderedDict[bytes, tuple[EncodedImage, int]] = OrderedDict()
        self.num_bytes = self.hits = self.misses = 0
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> EncodedImage | None:
        """The picture of that digest, which counts as used now."""
        with self._lock:
            if digest not in self._encoded:
                self.misses += 1
                return None
            self.hits += 1
            self._encoded.move_to_end(digest)
            encoded, _ = self._encoded[digest]
            return encoded

    def put(self, encoded: EncodedImage) -> None:
        """Keep a picture, unless it is larger than the whole cache."""
        size = encoded.features.num_bytes
        with self._lock:
            if encoded.digest in self._encoded or size > self._max_bytes:
                return
            self._encoded[encoded.digest] = (encoded, size)
            self.num_bytes += size
            while self.num_bytes > self._max_bytes:
                _, (_, oldest_size) = self._encoded.popitem(last=False)
                self.num_bytes -= oldest_size

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._encoded.clear()
            self.num_bytes = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._encoded

    def __len__(self) -> int:
        return len(self._encoded)
