"""Paths as users and files give them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from divprune.runtime.errors import OptionError

__all__ = ["check_utf8", "expand_user", "is_there"]


def expand_user(text: str) -> Path:
    """The path with its ``~`` replaced, or as it is where nobody is called so."""
    path = Path(text)
    with contextlib.suppress(RuntimeError):
        return path.expanduser()
    return path


def is_there(path: Path) -> bool:
    """Whether a path exists; what no file system can have (a name too long) does not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def check_utf8(path: Path, what: str, fix: str) -> None:
    """Refuse a path whose bytes are not UTF-8: libraries in Rust and C++ cannot open it.

    Args:
        path: As the user gave it.
        what: What it is to the user, such as ``--output``.
        fix: What to do beside setting the encoding.

    Raises:
        OptionError: if it is none.
    """
    try:
        str(path.absolute()).encode("utf-8")
    except UnicodeEncodeError as error:
        raise OptionError(
            f"{what} {path} is not text in UTF-8",
            expected="a path in UTF-8",
            found=ascii(str(path.absolute())),
            fix=f"{fix}; if it is UTF-8, set the terminal's encoding: LC_ALL=C.UTF-8",
        ) from error
