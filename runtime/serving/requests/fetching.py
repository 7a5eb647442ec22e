"""Pictures from the web, for servers that were told to fetch them, and from public hosts only.

A name is looked up once, all its addresses must be public, and the connection goes to the address
that was checked: a name that changes its answer in between gains nothing. Every redirect is
checked like the first address. No proxy settings, cookies or credentials are used.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divprune.runtime.serving.errors import ApiError, invalid, timed_out

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

__all__ = ["Fetcher", "is_public", "resolve_host"]

_MAX_HOPS = 4
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
_CHUNK = 1 << 16
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an address belongs to the internet at large."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        # IPv4 addresses in disguise: 6to4, Teredo, and what a translator stands for.
        if ip.sixtofour is not None or ip.teredo is not None or ip in _TRANSLATED:
            return False
    return ip.is_global and not ip.is_multicast


def resolve_host(host: str, port: int) -> list[str]:
    """All addresses of a host."""
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


@dataclass(frozen=True)
class Fetcher:
    """Gets the bytes behind URLs.

    Attributes:
        hosts: Names that are allowed; ``*`` allows any.
        max_bytes: Longest answer.
        deadline_s: Seconds for everything, redirects included.
        allowed: Whether an address may be dialled.
        resolve: The addresses of a host and port.
    """

    hosts: Sequence[str]
    max_bytes: int
    deadline_s: float = 20.0
    allowed: Callable[[str], bool] = is_public
    resolve: Callable[[str, int], list[str]] = resolve_host

    def __call__(self, url: str) -> bytes:
        """Fetch.

        Raises:
            ApiError: 400 if the place is not allowed or gives no picture, 504 if it is slow.
        """
        from http.client import HTTPException

        deadline = time.monotonic() + self.deadline_s
        for _ in range(_MAX_HOPS):
            try:
                target = self._visit(url, deadline)
                if isinstance(target, bytes):
                    return target
                url = urllib.parse.urljoin(url, target)
            except TimeoutError:
                raise timed_out("the picture did not arrive in time") from None
            except (OSError, ValueError, HTTPException):
                raise _refused("the URL cannot be fetched") from None
        raise _refused("the URL redirects too often")

    def _visit(self, url: str, deadline: float) -> bytes | str:
        """What is there, or where it has moved."""
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or _PORTS.get(parts.scheme, 0)
        if parts.scheme not in _PORTS or not host or parts.username or parts.password:
            raise _refused("only http and https URLs without credentials are fetched")
        if "*" not in self.hosts and host.lower() not in self.hosts:
            raise _refused("pictures are not fetched from this host")
        addresses = self.resolve(host, port)
        if not addresses or not all(map(self.allowed, addresses)):
            raise _refused("pictures are not fetched from this host")
        connection = _connect(parts.scheme, host, port, addresses[0], deadline)
        # A sender of one byte now and then never runs into the socket's own timeout.
        watch = threading.Timer(max(0.1, deadline - time.monotonic()), _hang_up, [connection])
        watch.daemon = True
        watch.start()
        try:
            path = urllib.parse.quote(parts.path or "/", safe="%/:=&~+!$,;'@()*[]")
            query = urllib.parse.quote(parts.query, safe="%/:=&?~+!$,;'@()*[]")
            connection.request("GET", f"{path}?{query}" if query else path)
            response = connection.getresponse()
            if response.status in _REDIRECTS:
                return response.getheader("Location") or ""
            if response.status != 200:
                raise _refused(f"the URL answers with status {response.status}")
            return self._read(response, deadline)
        finally:
            watch.cancel()
            connection.close()

    def _read(self, response: HTTPResponse, deadline: float) -> bytes:
        data = bytearray()
        while chunk := response.read1(_CHUNK):
            data += chunk
            if len(data) > self.max_bytes:
                raise _refused(f"the picture has more than {self.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return bytes(data)


def _connect(scheme: str, host: str, port: int, address: str, deadline: float) -> HTTPConnection:
    """A connection that dials ``address``, whatever the name of the host would lead to now."""
    import http.client
    import ssl

    left = max(0.1, deadline - time.monotonic())
    connection: HTTPConnection
    if scheme == "https":
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(host, port, timeout=left, context=context)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=left)

    def dial(_: Any, timeout: float, *__: Any) -> socket.socket:
        return socket.create_connection((address, port), timeout)

    connection._create_connection = dial  # type: ignore[attr-defined] # urllib3 does the same
    return connection


def _hang_up(connection: HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)


def _refused(message: str) -> ApiError:
    return invalid(message, code="url_not_allowed")
