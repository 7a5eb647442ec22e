"""The server's application on Ray Serve: replicas with an engine each, on any number of machines.

    serve run divprune.runtime.serving.ray_app:build engine_dir=/models/llava max_replicas=4

The application is the one of ``divprune-serve``: its limits, its queue and its errors. A replica
lets in what its own queue holds and one more, so that the answer to too much is the application's
429 and never a bare refusal of Ray's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError, OptionError

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["RayOptions", "build"]


@dataclass(frozen=True)
class RayOptions:
    """What can be said behind ``serve run``; keys stand in ``DIVPRUNE_API_KEY`` of the replicas.

    Attributes:
        engine_dir: Path of the engine directory, the same on every machine.
        keep: Fraction of visual tokens kept, or ``auto:C``; empty: as exported.
        model_name: What clients call it; empty: the directory's name.
        min_replicas: Replicas that are always there.
        max_replicas: Replicas under load.
        requests_per_replica: Requests, waiting ones included, above which another is started.
        max_queue: Requests that wait in a replica.
        cpus: CPUs a replica asks for.
        gpus: GPUs a replica asks for.
        threads: Threads inside one operator; 0 leaves it to the backend.
        device: ``cpu`` or ``cuda``; empty: the backend's own.
        grace: Seconds a replica has to finish when it is taken away.
    """

    engine_dir: str
    keep: str = ""
    model_name: str = ""
    min_replicas: int = 1
    max_replicas: int = 1
    requests_per_replica: float = 2.0
    max_queue: int = 16
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 0
    device: str = ""
    grace: float = 30.0

    @classmethod
    def read(cls, arguments: Mapping[str, Any]) -> RayOptions:
        """From words or a file of Serve's.

        Raises:
            OptionError: for a name that is none of these, and for a value of another type.
        """
        kinds: dict[str, Callable[[Any], Any]] = {"str": str, "int": int, "float": float}
        known = {field.name: kinds[str(field.type)] for field in fields(cls)}
        for name in arguments:
            if name not in known:
                raise OptionError(
                    f"unknown argument {name!r}", expected=", ".join(known), found=name
                )
        if "engine_dir" not in arguments:
            raise OptionError("no engine directory was named", fix="engine_dir=/path")
        try:
            return cls(**{name: known[name](value) for name, value in arguments.items()})
        except ValueError as error:
            raise OptionError("an argument has another type", found=error) from error


def build(arguments: Mapping[str, Any]) -> Any:
    """The Serve application, for ``serve run`` and Serve's config files.

    Raises:
        OptionError: for arguments that cannot be used.
        BackendError: if Ray Serve is missing.
    """
    options = RayOptions.read(arguments)
    try:
        serve = import_module("ray.serve")
    except ImportError as error:
        raise BackendError(
            "this needs Ray Serve", found=error, fix="pip install 'ray[serve]'"
        ) from error
    deployment = serve.deployment(
        name="divprune",
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        max_ongoing_requests=options.max_queue + 2,
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "initial_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "target_ongoing_requests": options.requests_per_replica,
        },
        graceful_shutdown_timeout_s=options.grace + 5,
        health_check_period_s=5,
    )
    return deployment(serve.ingress(_loader(options))(_Replica)).bind()


class _Replica:
    """What Serve makes an actor of; the application does the work."""

    def check_health(self) -> None:
        """Serve replaces a replica whose engine thread is gone."""
        if _servers and not _servers[-1].alive:
            raise RuntimeError("the engine thread has ended")


_servers: list[Any] = []


def _loader(options: RayOptions) -> Callable[[], Starlette]:
    """A function that loads the engine directory, called in each replica."""

    def load() -> Starlette:
        from divprune.runtime.directory.keep import parse_keep
        from divprune.runtime.pipeline import Pipeline
        from divprune.runtime.serving.app import ChatServer
        from divprune.runtime.serving.options import ServerOptions

        path = Path(options.engine_dir)
        key = os.environ.get("DIVPRUNE_API_KEY")
        served = ServerOptions(
            model_name=options.model_name or path.name,
            keep=str(parse_keep(options.keep)) if options.keep else None,
            api_keys=(key,) if key else (),
            max_queue=options.max_queue,
            grace_s=options.grace,
        )
        pipeline = Pipeline.from_dir(
            path, device=options.device or None, threads=options.threads or None
        )
        server = ChatServer(pipeline, served)
        _servers.append(server)
        return server.app

    return load
