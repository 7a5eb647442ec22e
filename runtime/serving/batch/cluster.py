"""Workers on a Ray cluster, or on a local one that is started for the run.

Ray gives processes on any number of machines and tells when one dies; what it does in silence (wait
for a cluster that is not there, for room that no machine has) is found here before a row is read.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError, OptionError
from divprune.runtime.serving.batch.handout import Handout, last_line
from divprune.runtime.serving.batch.worker import Answerer, WorkerOptions

if TYPE_CHECKING:
    from types import ModuleType

    from divprune.runtime.serving.batch.table import Row

__all__ = ["ClusterOptions", "answer_on_cluster", "import_ray"]

_log = logging.getLogger(__name__)
_CONNECT_S = 10.0
_LOST_S = 15.0


@dataclass(frozen=True)
class ClusterOptions:
    """Which workers.

    Attributes:
        workers: How many processes.
        address: Of a cluster: ``host:port``, ``ray://host:port`` or ``auto``; None starts one on
            this machine.
        cpus: CPUs a worker asks Ray for.
        gpus: GPUs a worker asks Ray for.

    Raises:
        OptionError: for numbers that cannot be used.
    """

    workers: int
    address: str | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise OptionError("--workers cannot be used", expected="1 or more", found=self.workers)
        for name, asked in (("cpus", self.cpus), ("gpus", self.gpus)):
            if not 0 <= asked < float("inf"):
                raise OptionError(
                    f"--{name}-per-worker cannot be used", expected="0 or more", found=asked
                )


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


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Give SIGTERM back to whoever handled it: ``ray.init`` takes it and keeps it."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        of_python = previous is not None
        if of_python and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)


@_sigterm_kept()
def answer_on_cluster(
    rows: Iterator[Row],
    options: WorkerOptions,
    cluster: ClusterOptions,
    write: Callable[[Sequence[dict[str, Any]]], None],
) -> None:
    """Answer all rows and write what comes back, in the order in which it does.

    Raises:
        BackendError: if the cluster cannot be reached or is lost, or workers cannot start.
    """
    ray = import_ray()
    _connect(ray, cluster)
    try:
        _check_room(ray, cluster)
        actor_class = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=0)(
            Answerer
        )
        handout = Handout(
            ray, rows, lambda: actor_class.remote(options), cluster.workers, write, _Head(ray).check
        )
        handout.run()
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise BackendError(
            "the Ray cluster was lost",
            found=last_line(error),
            fix="run the same command again: it goes on where it was",
        ) from error
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, cluster: ClusterOptions) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if cluster.address is not None:
            _probe(cluster.address)
            ray.init(address=cluster.address, **quiet)
        else:
            cpus = max(os.cpu_count() or 1, int(cluster.workers * cluster.cpus + 0.99))
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        found = " ".join(str(error).split())[:300]
        if cluster.address is None:
            raise BackendError(
                "Ray does not start",
                found=found,
                fix="leave --workers out, or set RAY_TMPDIR to a folder with a short path that can"
                " be written to",
            ) from error
        nobody_there = isinstance(error, ConnectionError)
        raise BackendError(
            "no Ray cluster can be reached",
            found=found,
            fix=_start_command(cluster.address) if nobody_there else None,
        ) from error


def _start_command(address: str) -> str:
    """What makes the address one of a cluster; a new one of this machine is what ``auto`` finds."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host:
        return "ray start --head on this machine"
    option = "ray-client-server-port" if address.startswith("ray://") else "port"
    return f"ray start --head --{option}={port} on {host}"


def _probe(address: str) -> None:
    """Ray tries for a quarter of an hour to reach an address where nothing listens."""
    if address == "auto" and not (address := _last_cluster()):
        return  # Ray says so itself
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"{address} is no address: HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"{address}: {error}") from error


def _last_cluster() -> str:
    """What ``auto`` stands for: named by the environment, or written down by ``ray start``."""
    file = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    return os.environ.get("RAY_ADDRESS") or (file.read_text().strip() if file.is_file() else "")


class _Head:
    """Whether the cluster is still there: a minute after it is not, Ray ends this process."""

    def __init__(self, ray: ModuleType) -> None:
        self._address = str(ray.get_runtime_context().gcs_address)
        self._seen = monotonic()

    def check(self) -> None:
        """Called while nothing comes back.

        Raises:
            ConnectionError: if it could not be reached for some time.
        """
        try:
            _probe(self._address)
            self._seen = monotonic()
        except ConnectionError:
            if monotonic() - self._seen > _LOST_S:
                raise


def _check_room(ray: ModuleType, cluster: ClusterOptions) -> None:
    """Ray waits without a word for room that the cluster has not got."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(machine, cluster) for machine in machines)
    if room == 0:
        cpus = max((machine.get("CPU", 0) for machine in machines), default=0)
        gpus = max((machine.get("GPU", 0) for machine in machines), default=0)
        raise BackendError(
            "no machine of the Ray cluster has room for a worker",
            expected=f"{cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs",
            found=f"{cpus:g} CPUs and {gpus:g} GPUs at most",
            fix="ask for less (--cpus-per-worker, --gpus-per-worker), or ray start --num-cpus N"
            " --num-gpus N on a machine where Ray does not see what there is",
        )
    if room < cluster.workers:
        _log.warning("the cluster has room for %d of %d workers", room, cluster.workers)


def _room(machine: dict[str, float], cluster: ClusterOptions) -> int:
    """How many workers one machine takes."""
    asked = {"CPU": cluster.cpus, "GPU": cluster.gpus}
    counts = [machine.get(name, 0) // number for name, number in asked.items() if number]
    return int(min(counts, default=cluster.workers))
