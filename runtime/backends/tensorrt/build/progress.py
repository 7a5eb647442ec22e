"""TensorRT's progress, through ``IProgressMonitor``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from divprune.runtime.backends.tensorrt.library import TensorRT

__all__ = ["OnStep", "ProgressLine", "make_monitor"]

# Is told the phase, the step that is done and the number of steps.
OnStep = Callable[[str, int, int], None]

_SECONDS = 0.2


def make_monitor(library: TensorRT, on_step: OnStep) -> Any:
    """An ``IProgressMonitor`` that calls ``on_step``.

    Nothing may be raised through TensorRT's C++: what ``on_step`` raises, Ctrl-C included,
    ends the build, and ``reraise`` raises it afterwards.
    """

    class Monitor(library.module.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            library.module.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self._error: BaseException | None = None

        def phase_start(self, name: str, parent: str | None, num_steps: int) -> None:
            del parent
            self._steps[name] = num_steps

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            try:
                if self._error is None:
                    on_step(name, step + 1, self._steps.get(name, 0))
            except BaseException as error:
                self._error = error
            return self._error is None

        def reraise(self) -> None:
            if self._error is not None:
                raise self._error

    return Monitor()


class ProgressLine:
    """One line on a terminal that is written over; nothing where there is no terminal.

    Args:
        title: What is being built.
        stream: Where the line goes.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = stream or sys.stderr
        self._shown_at = 0.0

    def __call__(self, phase: str, step: int, steps: int) -> None:
        """Show a step, a few times a second at most."""
        now = time.monotonic()
        if not self._stream.isatty() or now - self._shown_at < _SECONDS:
            return
        self._shown_at = now
        print(f"\r\x1b[K{self._title}: {phase} {step}/{steps}", end="", file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._shown_at:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
