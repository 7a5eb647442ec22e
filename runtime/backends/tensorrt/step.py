"""Decode steps as CUDA graphs."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from divprune.runtime.backends.tensorrt.engine import Engine, Session

__all__ = ["RecordedStep"]

log = logging.getLogger(__name__)


class RecordedStep:
    """Work that is the same every time: enqueued once, recorded the second time, launched after.

    TensorRT asks for one ordinary run before a recording. A recording holds addresses, so it
    is made anew when an engine, the scratch or another buffer is not the one it was. It keeps
    no engine alive: where engines take turns on the device, one that is gone has to be gone.

    Args:
        session: What the engines share.
        numbers: Which context of each engine runs.
    """

    def __init__(self, session: Session, numbers: Sequence[int]) -> None:
        self._session, self._numbers = session, tuple(numbers)
        self._key: tuple[Any, ...] | None = None
        self._graph: Any = None
        self._impossible = False

    def run(
        self,
        engines: Sequence[Engine],
        addresses: Sequence[Mapping[str, int]],
        enqueue: Callable[[], None],
    ) -> None:
        """Enqueue the work, in whichever way is the fastest by now.

        Args:
            engines: That take part; profile 0 of each is run.
            addresses: Of the inputs and outputs of each.
            enqueue: Enqueues the work.
        """
        cuda, stream = self._session.cuda, self._session.stream
        if self._key != self._key_of(engines, addresses):
            self._forget()
            enqueue()
            # Taken after the run, which may have made the scratch larger and so moved it.
            self._key = self._key_of(engines, addresses)
            return
        possible = self._graph is None and not self._impossible
        numbered = zip(engines, self._numbers, strict=True)
        if possible and all(engine.is_capturable(0, number) for engine, number in numbered):
            self._record(enqueue)
        if self._graph is not None:
            cuda.launch_graph(self._graph, stream)
        else:
            enqueue()

    def _key_of(
        self, engines: Sequence[Engine], addresses: Sequence[Mapping[str, int]]
    ) -> tuple[Any, ...]:
        scratch = self._session.scratch.reserve(0, self._session.stream)
        return (*map(weakref.ref, engines), scratch, *addresses)

    def _record(self, enqueue: Callable[[], None]) -> None:
        cuda, stream = self._session.cuda, self._session.stream
        cuda.begin_capture(stream)
        try:
            enqueue()
        except BaseException as error:
            cuda.abandon_capture(stream)
            if not isinstance(error, BackendError):
                raise
            self._give_up(error)
            return
        try:
            self._graph = cuda.end_capture(stream)
        except BackendError as error:
            self._give_up(error)

    def _give_up(self, error: BackendError) -> None:
        log.warning("decode steps are not recorded as a CUDA graph: %s", error.what)
        self._impossible = True

    def _forget(self) -> None:
        if self._graph is not None:
            self._session.cuda.destroy_graph(self._graph)
        self._graph, self._key = None, None
