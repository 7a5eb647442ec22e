"""Fetching a file over HTTP within one deadline, whatever the server does."""

from __future__ import annotations

import functools
import http.client
import io
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from divprune.runtime.errors import ImageError, shorten

__all__ = ["download"]

_SOCKET_TIMEOUT_S = 20.0
_DOWNLOAD_TIMEOUT_S = 120.0
_USER_AGENT = "divprune-edge (Python urllib)"
_URL_SAFE = "%/:=&?~#+!$,;'@()*[]"
_SCHEMES = ("http", "https")


def download(url: str, max_bytes: int) -> bytes:
    """The body behind an ``http`` or ``https`` URL.

    One deadline covers everything from the connection to the last byte, redirects included;
    these lead to other http(s) URLs only.

    Raises:
        ImageError: if it cannot be fetched, ends early or late, or is longer than ``max_bytes``.
    """
    name = shorten(url, 200)
    reason: object
    try:
        request = urllib.request.Request(
            urllib.parse.quote(url, safe=_URL_SAFE), headers={"User-Agent": _USER_AGENT}
        )
        deadline = time.monotonic() + _DOWNLOAD_TIMEOUT_S
        with _opener(deadline).open(request, timeout=_SOCKET_TIMEOUT_S) as response:
            return _read(response, name, max_bytes)
    except urllib.error.HTTPError as error:
        reason = f"HTTP status {error.code} {error.reason}"
        error.close()
    except urllib.error.URLError as error:
        reason = error.reason
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
    raise ImageError(
        f"{name} cannot be fetched",
        expected="a picture behind that URL",
        found=reason,
        fix="check the URL and the network, or download the picture and pass its path",
    )


def _read(response: Any, name: str, max_bytes: int) -> bytes:
    data = bytearray()
    while chunk := response.read1(1 << 16):
        data += chunk
        if len(data) > max_bytes:
            raise ImageError(
                f"{name} is too long for a picture",
                expected=f"at most {max_bytes} bytes",
                found="more",
                fix="save it as a file and pass its path",
            )
    if response.length:
        raise OSError(f"the server ended {response.length} bytes before the length it gave")
    return bytes(data)


def _opener(deadline: float) -> urllib.request.OpenerDirector:
    """Handlers for http and https only: the usual opener follows a redirect to ftp as well."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
        _Handler(deadline),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urllib.parse.urlsplit(newurl).scheme.lower() not in _SCHEMES:
            raise urllib.error.URLError(f"it redirects to {shorten(newurl, 200)}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Handler(urllib.request.HTTPSHandler):
    """Opens both schemes with connections that know the deadline."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> Any:
        connection = functools.partial(_connection, http.client.HTTPConnection, self._deadline)
        return self.do_open(connection, req)

    def https_open(self, req: urllib.request.Request) -> Any:
        connection = functools.partial(_connection, http.client.HTTPSConnection, self._deadline)
        return self.do_open(connection, req)

    http_request = urllib.request.AbstractHTTPHandler.do_request_
    https_request = urllib.request.AbstractHTTPHandler.do_request_


def _connection(
    kind: type[http.client.HTTPConnection], deadline: float, host: str, **options: Any
) -> http.client.HTTPConnection:
    options["timeout"] = max(0.001, min(_SOCKET_TIMEOUT_S, deadline - time.monotonic()))
    connection = kind(host, **options)
    connection.response_class = functools.partial(_Response, deadline)  # type: ignore[assignment]
    return connection


class _Response(http.client.HTTPResponse):
    """Reads status, headers and body through one deadline.

    A socket's own timeout starts again with every byte.
    """

    def __init__(self, deadline: float, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_UntilDeadline(self.fp, sock, deadline))


class _UntilDeadline(io.RawIOBase):
    def __init__(self, stream: Any, sock: socket.socket, deadline: float) -> None:
        super().__init__()
        self._stream, self._socket, self._deadline = stream, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"not complete after {_DOWNLOAD_TIMEOUT_S:.0f} s")
        self._socket.settimeout(min(_SOCKET_TIMEOUT_S, left))
        return int(self._stream.readinto1(buffer))

    def close(self) -> None:
        self._stream.close()
        super().close()
