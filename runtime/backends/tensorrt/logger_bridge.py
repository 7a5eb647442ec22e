"""TensorRT's logger, bridged into ``logging``."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["lacks_memory", "make_logger"]

log = logging.getLogger(__name__)

_BELOW_DEBUG = logging.DEBUG - 5  # TensorRT's VERBOSE is thousands of lines
_LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
    "VERBOSE": _BELOW_DEBUG,
}
# What every build of these graphs is told and nobody has to act on: both are how the graphs
# are meant to be.
_EXPECTED = ("has Int64 binding", "both a trip limit and a loop termination condition")
_KEPT_ERRORS = 8
_NO_MEMORY = re.compile(
    r"out ?of ?memory|insufficient memory|memory .*could not be allocated", re.IGNORECASE
)


def lacks_memory(errors: Sequence[str]) -> bool:
    """Whether one of TensorRT's error messages says that memory could not be had."""
    return any(_NO_MEMORY.search(error) for error in errors)


def make_logger(library: TensorRT) -> Any:
    """An ``ILogger`` that passes messages on to ``logging``, each warning and error once.

    Its ``errors()`` are the latest error messages since it was asked last, for the exception that
    follows when a call returns None. It must not raise: TensorRT calls it from C++.
    """

    class Bridge(library.module.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.module.ILogger.__init__(self)
            self._seen: set[str] = set()
            self._errors: deque[str] = deque(maxlen=_KEPT_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            with contextlib.suppress(Exception):
                self._pass_on(severity.name, message)

        def errors(self) -> list[str]:
            errors = list(self._errors)
            self._errors.clear()  # they are not the reason for what fails later
            return errors

        def _pass_on(self, severity: str, message: str) -> None:
            level = _LEVELS.get(severity, logging.WARNING)
            if level >= logging.ERROR and message not in self._errors:
                self._errors.append(message)
            if any(fragment in message for fragment in _EXPECTED):
                level = min(level, logging.DEBUG)
            if level >= logging.WARNING:
                if message in self._seen:
                    return
                self._seen.add(message)
            log.log(level, "%s: %s", library.title, message)

    return Bridge()
