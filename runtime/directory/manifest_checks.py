"""Rules for fields of ``manifest.json``, one function each, that raise ``FieldError``."""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath, PureWindowsPath

from divprune.runtime.directory.manifest_json import FieldError

__all__ = [
    "check",
    "check_at_least",
    "check_one_of",
    "check_plain",
    "check_relative",
    "check_text",
    "check_version",
]

_VERSION = re.compile(r"\d+(\.\d+)*")


def check(holds: object, field: str, expected: object, found: object) -> None:
    """Refuse a field for which something does not hold."""
    if not holds:
        raise FieldError(field, "has a value it cannot have", expected=expected, found=found)


def check_text(field: str, value: str) -> None:
    """Printable text, not empty."""
    # Names end up in messages on a terminal: no escape sequences.
    check(value and value.isprintable(), field, "printable text, not empty", repr(value))


def check_one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    check(value in allowed, field, f"one of {', '.join(allowed)}", value)


def check_at_least(field: str, value: int, lowest: int) -> None:
    """A number that is not too small."""
    check(value >= lowest, field, f"at least {lowest}", value)


def check_version(field: str, value: str) -> None:
    """Numbers with points between them."""
    check(_VERSION.fullmatch(value), field, "a version such as 1.22", value)


def check_relative(field: str, path: str) -> None:
    """Refuse what is not a plain path below the directory, on any operating system."""
    plain = (
        path.isprintable()
        and "\\" not in path
        and not PureWindowsPath(path).drive
        and not PureWindowsPath(path).root
        and ".." not in path.split("/")
        and PurePosixPath(path).as_posix() == path != "."
    )
    check(plain, field, "a relative path below the engine directory", repr(path))


def check_plain(field: str, value: object) -> None:
    """Refuse what would not come back from JSON as it was."""
    if type(value) is dict:
        for key, item in value.items():
            check(type(key) is str, field, "keys that are strings", repr(key))
            check_plain(f"{field}.{key}", item)
    elif type(value) is list:
        for index, item in enumerate(value):
            check_plain(f"{field}[{index}]", item)
    elif type(value) is float:
        check(math.isfinite(value), field, "a finite number", value)
    else:
        plain = value is None or type(value) in (str, int, bool)
        check(plain, field, "text, a number, true, false, null, a list or a dict", repr(value))
