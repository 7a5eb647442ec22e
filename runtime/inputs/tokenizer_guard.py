"""Calls into the tokenizers library with files that others wrote.

It panics where a file makes no sense, with an exception that is no ``Exception``; it aborts the
process over a broken character map, and some patterns never come to an end.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["check_character_maps", "guarded"]

MAX_SECONDS = 60.0
_CHARACTER_MAP = re.compile(r'"precompiled_charsmap"\s*:\s*"([^"]*)"')

_T = TypeVar("_T")


def guarded(call: Callable[[], _T]) -> _T:
    """What a call returns, within a minute.

    Raises:
        ValueError: for whatever the library raises, panics included.
        TimeoutError: if it does not come back; its thread is left behind.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = call()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(MAX_SECONDS)
    if thread.is_alive():
        raise TimeoutError(f"not done after {MAX_SECONDS:.0f} s")
    error = outcome.get("error")
    if isinstance(error, MemoryError):
        raise error
    if error is not None:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    result: _T = outcome["result"]
    return result


def check_character_maps(text: str) -> None:
    """Refuse a normaliser's character map that the library would read beyond its end.

    Raises:
        ValueError: saying what is wrong with it.
    """
    for match in _CHARACTER_MAP.finditer(text):
        try:
            blob = base64.b64decode(match[1].replace("\\/", "/"), validate=True)
        except binascii.Error as error:
            raise ValueError(f"precompiled_charsmap is no base64: {error}") from error
        trie = int.from_bytes(blob[:4], "little")
        if blob and (len(blob) < 4 or trie % 4 or not 0 < trie <= len(blob) - 4):
            raise ValueError(f"precompiled_charsmap of {len(blob)} bytes has a trie of {trie}")
