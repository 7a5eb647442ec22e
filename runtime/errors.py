"""The errors a user can mend.

Every one of them says what happened, what was expected against what was found, and the
command that mends it. A command-line tool prints the message and exits with 2; anything
else that escapes is a bug and exits with 1.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CheckpointError",
    "DatasetError",
    "DivPruneError",
    "EngineDirectoryError",
    "ImageError",
    "NumericalError",
    "OptionError",
    "PromptError",
    "UnsupportedError",
    "VideoError",
    "printable",
    "shorten",
]

_LONGEST_VALUE = 1000


class DivPruneError(Exception):
    """Base of all errors that the user can mend (exit code 2).

    Args:
        what: What happened, one sentence without a full stop.
        expected: What should have been there.
        found: What was there instead.
        fix: The command or step that mends it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: object | None = None,
        found: object | None = None,
        fix: str | None = None,
    ) -> None:
        # What users, servers and files said stands in here: a data URI is megabytes long, and an
        # escape code would write on the terminal.
        lines = [printable(shorten(what, _LONGEST_VALUE))]
        for label, value in (("expected", expected), ("found", found)):
            if value is not None:
                lines.append(f"  {label + ':':<10}{printable(shorten(str(value), _LONGEST_VALUE))}")
        if fix is not None:
            lines.append(f"  {'fix:':<10}{printable(fix)}")
        super().__init__("\n".join(lines))
        self.what = what
        self.expected = expected
        self.found = found
        self.fix = fix


class OptionError(DivPruneError):
    """A command-line option or API argument has a value that cannot be used."""


class ImageError(DivPruneError):
    """A picture cannot be fetched, read or decoded."""


class VideoError(ImageError):
    """A video cannot be fetched, read or decoded."""


class DatasetError(DivPruneError):
    """A file of questions about pictures is missing, empty or malformed."""


class PromptError(DivPruneError):
    """A prompt cannot be built or does not fit."""


class EngineDirectoryError(DivPruneError):
    """An engine directory is missing, damaged, from another version or unsafe."""


class CheckpointError(DivPruneError):
    """A checkpoint is missing, incomplete, or does not match its config."""


class UnsupportedError(DivPruneError):
    """A model feature, by name, that this version cannot express correctly."""


class BackendError(DivPruneError):
    """An inference backend is missing, too old, or refuses the graph."""


class NumericalError(DivPruneError):
    """A NaN or Inf came up where finite numbers are needed."""


def shorten(text: str, limit: int) -> str:
    """The text, without its middle where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    left = f" ... ({len(text) - limit} characters left out) ... "
    return text[: limit - limit // 4] + left + text[len(text) - limit // 4 :]


def printable(text: str) -> str:
    """The text with control characters and half characters as Python escapes, lines as they are.

    Direction marks, line separators of Unicode and the codes that move a terminal's cursor are
    among them; letters of any script are not.
    """
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text
    )
