"""JSON that others wrote, read within bounds of size, depth, numbers and text.

Whatever comes out can be copied, hashed, encoded and printed: nothing later has to expect a
recursion limit, an integer no library takes, or a string that is no text.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from divprune.runtime.errors import DivPruneError, EngineDirectoryError, shorten

__all__ = [
    "MAX_JSON_BYTES",
    "open_for_reading",
    "parse_json",
    "read_bounded",
    "read_json",
    "read_json_object",
    "require_usable",
]

MAX_JSON_BYTES = 64 * 2**20
"""Largest JSON file that is read: the largest known are tokenizers of about 30 MB."""

_MAX_DEPTH = 100
_MAX_INTEGER = 2**63  # what files, tensors and time are counted in
# Transformers writes 10**30 where a tokenizer has no longest text; nothing counts with it.
_ENDLESS = "model_max_length"


def read_json_object(
    path: Path,
    *,
    error: type[DivPruneError] = EngineDirectoryError,
    fix: str | None = None,
    max_bytes: int = MAX_JSON_BYTES,
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        error: What is raised.
        fix: What mends it, for the message.
        max_bytes: Largest file that is read.

    Raises:
        DivPruneError: of the type ``error``, if the file is missing, no plain file, too large,
            no JSON, no object, or holds what cannot be used: the message names the place.
    """
    content = read_json(path, error=error, fix=fix, max_bytes=max_bytes)
    if not isinstance(content, dict):
        raise error(
            f"{path.name} is not a JSON object",
            expected=f"an object in {path}",
            found=_kind(content),
            fix=fix,
        )
    return content


def read_json(
    path: Path,
    *,
    error: type[DivPruneError] = EngineDirectoryError,
    fix: str | None = None,
    max_bytes: int = MAX_JSON_BYTES,
) -> Any:
    """The value in a JSON file; arguments and errors are those of ``read_json_object``."""
    data = read_bounded(path, max_bytes, error=error, fix=fix)
    try:
        return parse_json(data)
    except ValueError as reason:
        raise error(
            f"{path.name} is not JSON that can be read",
            expected=f"JSON in {path}",
            found=reason,
            fix=fix,
        ) from reason


def parse_json(data: bytes | str) -> Any:
    """The value that ``data`` spells.

    Raises:
        ValueError: if it is no UTF-8 or no JSON, or is nested too deeply, or holds an integer of
            more than 64 bits or text with half a character.
    """
    try:
        value = json.loads(data if isinstance(data, str) else data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep") from None
    except UnicodeDecodeError as reason:
        raise ValueError(f"it is no UTF-8 text: {reason}") from reason
    require_usable(value)
    return value


def require_usable(value: Any) -> None:
    """Refuse parsed JSON that is too deep, or holds too large a number or half a character.

    Raises:
        ValueError: naming the place.
    """
    for place, depth, leaf in _walk(value):
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if isinstance(leaf, str):
            if leaf.isascii():  # known without a look: a picture in base64 may be megabytes
                continue
            try:
                leaf.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{place} is text with half a character in it") from None
        elif type(leaf) is int and abs(leaf) > _MAX_INTEGER and not place.endswith(_ENDLESS):
            raise ValueError(f"{place} is an integer of more than 64 bits")


def read_bounded(
    path: Path,
    max_bytes: int,
    *,
    error: type[DivPruneError] = EngineDirectoryError,
    fix: str | None = None,
) -> bytes:
    """The bytes of a plain file: a pipe or a device could give bytes for ever.

    Raises:
        DivPruneError: of the type ``error``, if it is missing, something else, or too large.
    """
    try:
        # Opening a pipe that nobody writes to would wait for ever.
        file = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError as reason:
        raise error(f"{path.name} is missing", expected=path, found="no file", fix=fix) from reason
    except (OSError, ValueError) as reason:
        raise error(f"{path.name} cannot be read", expected=path, found=reason, fix=fix) from reason
    try:
        with os.fdopen(file, "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise error(
                    f"{path.name} is no plain file", expected=path, found="something else", fix=fix
                )
            data = stream.read(max_bytes + 1)
    except OSError as reason:
        raise error(f"{path.name} cannot be read", expected=path, found=reason, fix=fix) from reason
    if len(data) > max_bytes:
        raise error(
            f"{path.name} is too large",
            expected=f"at most {max_bytes} bytes",
            found="more",
            fix=fix,
        )
    return data


def open_for_reading(path: Path) -> int:
    """A file descriptor; opening a pipe that nobody writes to does not wait."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


def _walk(value: Any) -> Iterator[tuple[str, int, Any]]:
    """Every key and leaf with its place and depth, without recursion."""
    waiting: list[tuple[str, int, Any]] = [("the value", 0, value)]
    while waiting:
        place, depth, item = waiting.pop()
        yield place, depth, item
        if depth > _MAX_DEPTH or not isinstance(item, (dict, list)):
            continue
        inside = "" if place == "the value" else f"{place}."
        for key, child in item.items() if isinstance(item, dict) else enumerate(item):
            name = f"{inside}{shorten(str(key), 40)}"
            if isinstance(key, str):
                yield f"the key {name!r}", depth + 1, key
            waiting.append((name, depth + 1, child))


def _kind(value: object) -> str:
    names: dict[type, str] = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else names.get(type(value), "a number")
