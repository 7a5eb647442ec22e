"""Run the application: a socket first, then uvicorn, and an end that loses no answer."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from importlib import import_module
from types import FrameType
from typing import TYPE_CHECKING, Any

from divprune.runtime.errors import BackendError, OptionError

if TYPE_CHECKING:
    from divprune.runtime.serving.app import ChatServer
    from divprune.runtime.serving.options import ServerOptions

__all__ = ["bind", "require_packages", "run"]

log = logging.getLogger(__name__)

_BACKLOG = 128
_SLACK_S = 10


def require_packages() -> None:
    """Refuse to go on without what serves HTTP.

    Raises:
        BackendError: naming the command that installs it.
    """
    try:
        import_module("starlette")
        import_module("uvicorn")
    except ImportError as error:
        raise BackendError(
            "the server needs starlette and uvicorn",
            found=error,
            fix="pip install 'divprune-edge[serve]'",
        ) from error


def bind(host: str, port: int) -> socket.socket:
    """Take the address, before gigabytes are loaded for nothing.

    Raises:
        OptionError: if the port is taken, or the address is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise OptionError("--port cannot be used", expected="0 to 65535", found=port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
            taken.listen(_BACKLOG)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise OptionError(
            f"cannot listen on {host} port {port}",
            found=error.strerror or error,
            fix="choose another --port (0 takes any that is free), or another --host",
        ) from error
    return taken


def run(server: ChatServer, options: ServerOptions, listener: socket.socket, proxies: str) -> None:
    """Serve until SIGINT or SIGTERM; a second SIGINT does not wait for anything.

    Args:
        server: The application.
        options: Its limits.
        listener: From `bind`.
        proxies: Addresses whose ``X-Forwarded-For`` is believed, with commas; empty: none.
    """
    import uvicorn

    class Server(uvicorn.Server):
        """Begins to drain as soon as a signal comes, while connections are still open."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if not self.should_exit:
                log.info("finishing what was accepted, for at most %g s", options.grace_s)
                threading.Thread(target=server.drain, name="divprune-drain", daemon=True).start()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        server.app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies or None,
        timeout_graceful_shutdown=int(options.grace_s) + _SLACK_S,
        timeout_keep_alive=30,
    )
    _serve(Server(config), listener)


def _serve(server: Any, listener: socket.socket) -> None:
    import asyncio

    # uvicorn raises the signal that ended it once more: an orderly end is a success.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)
    asyncio.run(server.serve(sockets=[listener]))
