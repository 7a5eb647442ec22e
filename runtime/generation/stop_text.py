"""Ending an answer where one of several texts comes up."""

from __future__ import annotations

from collections.abc import Sequence

from divprune.runtime.errors import OptionError

__all__ = ["StopText", "validate_stop"]


def validate_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Check the texts that end an answer.

    Raises:
        OptionError: if one of them is empty, which would end every answer before it begins.
    """
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(text for text in stop):
        raise OptionError(
            "a text that ends the answer cannot be used",
            expected="at least one character",
            found=repr(list(stop)),
            fix="--stop '###', or leave it out",
        )
    return stop


class StopText:
    """Lets an answer through up to the first of several texts, which is left out.

    What may become one of them is held back until it is clear.

    Args:
        stop: The texts.

    Attributes:
        found: Whether one of them came up.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Take the next piece of the answer; what is certain to be shown."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for place in map(text.find, self._stop) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back to the end."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
