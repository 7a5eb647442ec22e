"""Rows to the workers of a Ray cluster, answers back.

Rows go out a few at a time, to workers that have loaded the model; answers come back to the one
process that writes them. So an answer that is written is never made again, a worker that dies costs
the rows it had, and a row that kills its worker again and again is found and becomes an error
instead of ending the run.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError
from divprune.runtime.serving.batch.worker import failed_answer

if TYPE_CHECKING:
    from types import ModuleType

    from divprune.runtime.serving.batch.table import Row

__all__ = ["Handout", "last_line"]

_log = logging.getLogger(__name__)
_CHUNK = 8
_AHEAD = 2
_TRIES = 4
_FAILED_STARTS = 6
_ROWS_LOST = 6
_POLL_S = 1.0
_PATIENCE_S = 30.0


@dataclass(eq=False)
class _Chunk:
    rows: Sequence[Row]
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    """An actor, its chunks, and the reference that tells when its model is loaded."""

    actor: Any
    loading: Any | None
    chunks: deque[tuple[Any, _Chunk]] = field(default_factory=deque)

    @property
    def next(self) -> Any | None:
        """What it will have done next; it answers its chunks in order."""
        if self.loading is not None:
            return self.loading
        return self.chunks[0][0] if self.chunks else None


class Handout:
    """Gives rows to workers and takes their answers.

    Args:
        ray: The module.
        rows: What to answer.
        make: Starts a worker: the handle of an ``Answerer`` on the cluster.
        workers: How many.
        write: Takes answers as they come.
        check: Called now and then while nothing comes back; raises if nothing ever will.
    """

    def __init__(
        self,
        ray: ModuleType,
        rows: Iterator[Row],
        make: Callable[[], Any],
        workers: int,
        write: Callable[[Sequence[dict[str, Any]]], None],
        check: Callable[[], None],
    ) -> None:
        self._ray = ray
        self._rows = rows
        self._make = make
        self._write = write
        self._check = check
        self._again: deque[_Chunk] = deque()
        self._failed_starts = self._rows_lost = 0
        self._start_error: Exception | None = None
        errors = ray.exceptions
        self._deaths = (
            errors.RayActorError,
            errors.NodeDiedError,
            errors.ObjectLostError,
            errors.OutOfMemoryError,
            errors.WorkerCrashedError,
        )
        self._workers = [self._start() for _ in range(workers)]

    def run(self) -> None:
        """Until every row has an answer or an error.

        Raises:
            BackendError: if no worker can be started, or all die whatever they are asked.
        """
        patience: float | None = monotonic() + _PATIENCE_S
        while self._has_rows() or any(worker.chunks for worker in self._workers):
            for worker in self._workers:
                self._feed(worker)
            waiting = [worker.next for worker in self._workers if worker.next is not None]
            done, _ = self._ray.wait(waiting, timeout=_POLL_S)
            if not done:
                self._check()
            for worker in self._workers:
                if worker.next is not None and worker.next in done:
                    self._collect(worker)
            if patience is not None and monotonic() > patience:
                patience = None
                self._say_who_is_missing()

    def _start(self) -> _Worker:
        actor = self._make()
        return _Worker(actor, actor.pid.remote())

    def _has_rows(self) -> bool:
        if not self._again and (rows := list(islice(self._rows, _CHUNK))):
            self._again.append(_Chunk(rows))
        return bool(self._again)

    def _feed(self, worker: _Worker) -> None:
        while worker.loading is None and len(worker.chunks) < _AHEAD and self._has_rows():
            chunk = self._again[0]
            # Beside another, it would be blamed for its death: an answer that a worker gave just
            # before it died may not have come back.
            if worker.chunks and (chunk.deaths or worker.chunks[-1][1].deaths):
                return
            self._again.popleft()
            worker.chunks.append((worker.actor.answer_all.remote(list(chunk.rows)), chunk))

    def _collect(self, worker: _Worker) -> None:
        try:
            result = self._ray.get(worker.next)
        except self._deaths as error:
            self._replace(worker, error)
            return
        if worker.loading is not None:
            worker.loading = None
            return
        worker.chunks.popleft()
        self._failed_starts = self._rows_lost = 0
        self._write(result)

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """A worker has died: over the first of its chunks, as far as can be told."""
        if worker.loading is not None:
            self._failed_starts += 1
            # Ray does not always say more than that the process has ended.
            if self._start_error is None or getattr(error, "actor_init_failed", False):
                self._start_error = error
            if self._failed_starts >= _FAILED_STARTS:
                raise _all_die("workers die before they answer anything", self._start_error)
        else:
            (_, first), *others = worker.chunks
            self._again.extendleft(chunk for _, chunk in reversed(others))
            self._again.extendleft(reversed(self._smaller(first, error)))
        self._workers[self._workers.index(worker)] = self._start()

    def _smaller(self, chunk: _Chunk, error: Exception) -> list[_Chunk]:
        """The rows of a chunk one by one; one that has killed too often is given up."""
        deaths = chunk.deaths + 1
        if len(chunk.rows) > 1 or deaths < _TRIES:
            return [_Chunk([row], deaths) for row in chunk.rows]
        self._rows_lost += 1
        if self._rows_lost >= _ROWS_LOST:
            raise _all_die("workers die whatever they are asked", error)
        self._write([failed_answer(row.key, "its worker died every time") for row in chunk.rows])
        return []

    def _say_who_is_missing(self) -> None:
        missing = sum(worker.loading is not None for worker in self._workers)
        if missing:
            _log.warning(
                "%d of %d workers have not started after %.0f s; ray status shows why",
                missing,
                len(self._workers),
                _PATIENCE_S,
            )


def _all_die(what: str, error: Exception) -> BackendError:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return BackendError(
        what,
        found=last_line(cause),
        fix="see that the engine directory has the same path on every machine, and that a"
        " worker has memory enough (fewer --workers)",
    )


def last_line(error: BaseException) -> str:
    """The cause, which Ray's messages end with; indented lines say more about it."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if not line[0].isspace()]
    return (causes or lines or [type(error).__name__])[-1].strip()[:300]
