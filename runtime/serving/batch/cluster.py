"""Workers on a Ray cluster, or on a local one that is started for the run.

Ray gives processes on any number of machines and tells when one dies. Handing out rows is done
here: rows go out a few at a time, answers come back to the one process that writes them. So an
answer that is written is never made again, a worker that dies costs the rows it had, and a row that
kills its worker again and again is found and becomes an error instead of ending the run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from itertools import islice
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError
from divprune.runtime.serving.batch.worker import Answerer, WorkerOptions, failed_answer

if TYPE_CHECKING:
    from types import ModuleType

    from divprune.runtime.serving.batch.table import Row

__all__ = ["ClusterOptions", "answer_on_cluster", "import_ray"]

_CHUNK = 8
_AHEAD = 2
_TRIES = 3
_DEATHS_IN_A_ROW = 6
_POLL_S = 1.0


@dataclass(frozen=True)
class ClusterOptions:
    """Which workers.

    Attributes:
        workers: How many processes.
        address: Of a cluster; None starts one on this machine.
        cpus: CPUs a worker asks Ray for.
        gpus: GPUs a worker asks Ray for.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(eq=False)
class _Chunk:
    rows: Sequence[Row]
    deaths: int = 0


@dataclass(eq=False)
class _Worker:
    actor: Any
    chunks: deque[tuple[Any, _Chunk]] = field(default_factory=deque)


def import_ray() -> ModuleType:
    """Ray.

    Raises:
        BackendError: naming the command that installs it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return import_module("ray")
    except ImportError as error:
        raise BackendError(
            "several workers need Ray",
            found=error,
            fix="pip install 'divprune-edge[batch]', or leave --workers and --address out",
        ) from error


def answer_on_cluster(
    rows: Iterator[Row],
    options: WorkerOptions,
    cluster: ClusterOptions,
    write: Callable[[Sequence[dict[str, Any]]], None],
) -> None:
    """Answer all rows and write what comes back, in the order in which it does.

    Raises:
        BackendError: if workers cannot start, or the cluster is lost.
    """
    ray = import_ray()
    _connect(ray, cluster)
    try:
        _Handout(ray, rows, options, cluster, write).run()
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise BackendError(
            "the Ray cluster was lost",
            found=str(error).strip().splitlines()[-1][:200],
            fix="run the same command again: it goes on where it was",
        ) from error
    finally:
        ray.shutdown()


class _Handout:
    """Gives rows to workers and takes their answers."""

    def __init__(
        self,
        ray: ModuleType,
        rows: Iterator[Row],
        options: WorkerOptions,
        cluster: ClusterOptions,
        write: Callable[[Sequence[dict[str, Any]]], None],
    ) -> None:
        self._ray = ray
        self._rows = rows
        self._write = write
        self._again: deque[_Chunk] = deque()
        self._deaths_in_a_row = 0
        self._options = options
        self._actor_class = ray.remote(
            num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0
        )(Answerer)
        self._workers = [_Worker(self._make()) for _ in range(cluster.workers)]

    def _make(self) -> Any:
        return self._actor_class.remote(self._options)

    def run(self) -> None:
        """Until every row has an answer or an error."""
        while True:
            for worker in self._workers:
                self._feed(worker)
            # A worker answers its chunks in order, so only its first can be ready.
            firsts = [worker.chunks[0][0] for worker in self._workers if worker.chunks]
            if not firsts:
                return
            done, _ = self._ray.wait(firsts, timeout=_POLL_S)
            for worker in self._workers:
                if worker.chunks and worker.chunks[0][0] in done:
                    self._collect(worker)

    def _feed(self, worker: _Worker) -> None:
        while len(worker.chunks) < _AHEAD and (chunk := self._next_chunk()) is not None:
            ref = worker.actor.answer_all.remote(list(chunk.rows))
            worker.chunks.append((ref, chunk))

    def _next_chunk(self) -> _Chunk | None:
        if self._again:
            return self._again.popleft()
        rows = list(islice(self._rows, _CHUNK))
        return _Chunk(rows) if rows else None

    def _collect(self, worker: _Worker) -> None:
        ref, _ = worker.chunks[0]
        try:
            answers = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            self._replace(worker, error)
            return
        worker.chunks.popleft()
        self._deaths_in_a_row = 0
        self._write(answers)

    def _replace(self, worker: _Worker, error: Exception) -> None:
        """A worker has died: over the first of its chunks, as far as can be told."""
        self._deaths_in_a_row += 1
        if self._deaths_in_a_row >= _DEATHS_IN_A_ROW:
            raise BackendError(
                "workers die before they answer anything",
                found=_reason(error),
                fix="see that the engine directory has the same path on every machine, and that a"
                " worker has memory enough (fewer --workers)",
            ) from error
        first, *others = (chunk for _, chunk in worker.chunks)
        worker.chunks.clear()
        self._again.extendleft(reversed([*self._smaller(first), *others]))
        worker.actor = self._make()

    def _smaller(self, chunk: _Chunk) -> list[_Chunk]:
        """The rows of a chunk one by one; one that has killed too often is given up."""
        deaths = chunk.deaths + 1
        if len(chunk.rows) > 1:
            return [_Chunk([row], deaths) for row in chunk.rows]
        if deaths < _TRIES + 1:
            return [_Chunk(chunk.rows, deaths)]
        self._write([failed_answer(row.key, "its worker died every time") for row in chunk.rows])
        self._deaths_in_a_row = 0
        return []


def _connect(ray: ModuleType, cluster: ClusterOptions) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if cluster.address is not None:
            ray.init(address=cluster.address, **quiet)
        else:
            cpus = max(os.cpu_count() or 1, int(cluster.workers * cluster.cpus + 0.99))
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise BackendError(
            "no Ray cluster can be reached" if cluster.address else "Ray does not start",
            found=str(error).strip().splitlines()[0][:200],
            fix="ray status shows whether one is running; ray start --head starts one",
        ) from error


def _reason(error: Exception) -> str:
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line for line in str(cause).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
