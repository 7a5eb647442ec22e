"""The bytes of a picture without the blocks that say nothing about its pixels.

A damaged comment, colour profile or thumbnail makes Pillow refuse a picture that every viewer
shows. What is left here is what pixels, transparency and orientation need.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

__all__ = ["without_metadata"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_START_OF_SCAN, _COMMENT = 0xDA, 0xFE
_STANDALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
# By marker: what a segment that is kept starts with, and its least length.
_KEPT_SEGMENTS = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 14), 0xEE: (b"Adobe", 12)}
# Entries of a transparent level or colour by the colour type of a PNG; a palette has one a colour.
_TRANSPARENT_BYTES = {0: 2, 2: 6}


def without_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG file with fewer blocks; None for other files, and where none is left out."""
    try:
        if data.startswith(_PNG):
            bare = _PNG + b"".join(_png_chunks(data))
        elif data.startswith(_JPEG):
            bare = _JPEG + b"".join(_jpeg_segments(data))
        else:
            return None
    except (struct.error, IndexError):  # it ends in the middle of a block
        return None
    return None if bare == data else bare


def _png_chunks(data: bytes) -> Iterator[bytes]:
    """Critical chunks as they are, orientation, and transparency where it can be used."""
    place, colour_type, colours = len(_PNG), -1, 0
    kind = b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, place)
        content = data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, place + 8 + length)
        whole = data[place : place + 12 + length]
        place += 12 + length
        if kind == b"IHDR":
            colour_type = content[9]
        elif kind == b"PLTE":
            colours = length // 3
        if not kind[0] & 0x20:  # a capital letter: critical
            yield whole
        elif checksum != zlib.crc32(kind + content):
            continue
        elif kind == b"eXIf":
            yield whole
        elif kind == b"tRNS":
            size = colours if colour_type == 3 else _TRANSPARENT_BYTES.get(colour_type, 0)
            if 0 < size <= length or (colour_type == 3 and length):
                yield _png_chunk(kind, content[:size])


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _jpeg_segments(data: bytes) -> Iterator[bytes]:
    """Segments in front of the pixels, less comments and foreign applications; then the rest."""
    place = len(_JPEG)
    while True:
        if data[place] != 0xFF:
            raise IndexError("no marker")
        marker = data[place + 1]
        if marker == 0xFF:  # a byte of filling
            place += 1
            continue
        if marker == _START_OF_SCAN:
            yield data[place:]
            return
        (length,) = (0,) if marker in _STANDALONE else struct.unpack_from(">H", data, place + 2)
        segment = data[place : place + 2 + length]
        place += 2 + length
        if not 0xE0 <= marker <= 0xEF and marker != _COMMENT:
            yield segment
            continue
        start, least = _KEPT_SEGMENTS.get(marker, (b"", 1 << 16))
        if segment[4:].startswith(start) and len(segment) - 4 >= least:
            yield segment
