"""Paths that libraries written in Rust and C++ can take."""

from __future__ import annotations

from pathlib import Path

from divprune.runtime.errors import OptionError

__all__ = ["check_utf8"]


def check_utf8(path: Path, what: str, fix: str) -> None:
    """Refuse a path whose bytes are not UTF-8: tokenizers and ONNX Runtime cannot open it.

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
