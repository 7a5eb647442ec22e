"""Where the bytes of a picture come from: a file, a URL, a data URI or standard input."""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

from divprune.runtime.errors import ImageError, shorten

__all__ = ["ACCEPTED", "MAX_STREAM_BYTES", "file_path", "open_source", "scheme_of"]

ACCEPTED = "a picture file, an http(s), file or data URL, or - for standard input"

MAX_STREAM_BYTES = 64 * 2**20
"""Most bytes taken from a URL, standard input or a pipe."""

_PIPE_TIMEOUT_S = 120.0
_SCHEME = re.compile(r"(https?|file|data):", re.IGNORECASE)
_LONGEST_NAME = 200


def open_source(source: str | Path) -> tuple[BinaryIO, str]:
    """A stream of a picture's bytes, with what messages call it.

    Args:
        source: A path, a URL (``http``, ``https``, ``file``, ``data``), or ``-``.

    Raises:
        ImageError: if nothing is there or it cannot be fetched.
    """
    if str(source) == "-":
        return io.BytesIO(_read_stdin()), "standard input"
    scheme = scheme_of(source)
    if scheme is None:
        return _open_file(Path(source)), shorten(str(source), _LONGEST_NAME)
    url = str(source)
    name = shorten(url, _LONGEST_NAME)
    if scheme == "file":
        return _open_file(file_path(url)), name
    if scheme == "data":
        return io.BytesIO(_decode_data_uri(url)), shorten(url, 60)
    from divprune.runtime.inputs.download import download

    return io.BytesIO(download(url, MAX_STREAM_BYTES)), name


def scheme_of(source: object) -> str | None:
    """``http``, ``https``, ``file`` or ``data`` for a URL of that kind; otherwise None."""
    match = _SCHEME.match(source) if isinstance(source, str) else None
    return None if match is None else match[1].lower()


def _open_file(path: Path) -> BinaryIO:
    name = shorten(str(path), _LONGEST_NAME)
    try:
        # Opening a pipe that nobody writes to would wait for ever.
        number = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist", expected=ACCEPTED) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name} cannot be opened", expected=ACCEPTED, found=reason) from error
    file = os.fdopen(number, "rb") if not _is_directory(number) else None
    if file is None:
        os.close(number)
        raise ImageError(f"{name} is a directory", expected=ACCEPTED)
    if stat.S_ISREG(os.fstat(number).st_mode):
        return file
    with file:
        return io.BytesIO(_read_pipe(number, name))


def _is_directory(number: int) -> bool:
    return stat.S_ISDIR(os.fstat(number).st_mode)


def _read_pipe(number: int, name: str) -> bytes:
    """Everything from a pipe or device, which may be slow or without an end."""
    deadline = time.monotonic() + _PIPE_TIMEOUT_S
    data = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([number], [], [], left)[0]:
            raise ImageError(
                f"{name} gives no whole picture",
                expected=f"all of it within {_PIPE_TIMEOUT_S:.0f} s",
                found=f"{len(data)} bytes",
            )
        try:
            chunk = os.read(number, 1 << 16)
        except BlockingIOError:
            continue
        except OSError as error:
            raise ImageError(f"{name} cannot be read", found=error.strerror) from error
        if not chunk:
            return bytes(data)
        data += chunk
        if len(data) > MAX_STREAM_BYTES:
            raise _too_long(name)


def _read_stdin() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise ImageError(
            "there is no picture on standard input",
            expected="a picture file piped in",
            found="a closed stream" if sys.stdin is None else "a terminal",
            fix="divprune-run ENGINE_DIR - < picture.jpg",
        )
    stream: Any = sys.stdin.buffer
    data = bytearray()
    try:
        while chunk := stream.read1(1 << 16):
            data += chunk
            if len(data) > MAX_STREAM_BYTES:
                raise _too_long("standard input")
    except OSError as error:
        raise ImageError("standard input cannot be read", found=error.strerror) from error
    return bytes(data)


def file_path(url: str) -> Path:
    """The path of ``file:///path``, ``file://localhost/path`` or ``file:/path``."""
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(url)
        host = parts.netloc
    except ValueError as error:
        raise ImageError("the URL of the picture cannot be read", found=url) from error
    if host not in ("", "localhost") or not parts.path.startswith("/"):
        raise ImageError(
            f"{shorten(url, _LONGEST_NAME)} is no file of this machine",
            expected="file:///an/absolute/path",
            found=f"the host {host!r}" if host else "a relative path",
        )
    return Path(unquote(parts.path))


def _decode_data_uri(uri: str) -> bytes:
    """Bytes of ``data:[type][;base64],content``."""
    import base64
    import binascii
    from urllib.parse import unquote_to_bytes

    header, comma, content = uri[len("data:") :].partition(",")
    if len(content) > 2 * MAX_STREAM_BYTES:
        raise _too_long("the data URI")
    try:
        if not comma:
            raise ValueError("no comma behind the type")
        raw = unquote_to_bytes(content)
        if header.lower().endswith(";base64"):
            plain = raw.translate(None, b" \t\r\n").replace(b"-", b"+").replace(b"_", b"/")
            raw = base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (ValueError, binascii.Error) as error:
        raise ImageError(
            "the data URI cannot be decoded",
            expected="data:image/png;base64, and the picture in base64",
            found=f"{error} in {shorten(uri, 60)}",
        ) from error
    if len(raw) > MAX_STREAM_BYTES:
        raise _too_long("the data URI")
    return raw


def _too_long(name: str) -> ImageError:
    return ImageError(
        f"{name} is too long for a picture",
        expected=f"at most {MAX_STREAM_BYTES} bytes",
        found="more",
        fix="save it as a file and pass its path",
    )
