"""The body of a request: its bytes, within limits of size and time, then its JSON."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from divprune.runtime.directory.bounded_json import require_usable
from divprune.runtime.errors import printable
from divprune.runtime.serving.errors import ApiError, invalid, timed_out, too_large

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["ClientGoneError", "parse_json", "read_body"]


class ClientGoneError(Exception):
    """The client hung up before its request was complete."""


async def read_body(request: Request, limit: int, timeout_s: float) -> bytes:
    """All bytes of a body.

    Raises:
        ApiError: 413 if it is longer than ``limit``, 408 if it is slower than ``timeout_s``.
        ClientGoneError: if the client hangs up before its end.
    """
    try:
        return await asyncio.wait_for(_read(request, limit), timeout_s)
    except asyncio.TimeoutError:
        raise timed_out(f"the request took longer than {timeout_s:g} s to arrive", 408) from None


async def _read(request: Request, limit: int) -> bytes:
    error = too_large(f"the request has more than {limit} bytes")
    data, size = bytearray(), 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        # What is a little too long is read to its end and thrown away: many clients look for an
        # answer only then, and a connection that is closed before may lose it.
        if size <= limit:
            data += chunk
        elif size > 2 * limit:
            raise error
        if not message.get("more_body", False):
            if size > limit:
                raise error
            return bytes(data)


def parse_json(body: bytes) -> Any:
    """The JSON value of a body, which may be UTF-8 only, with a byte order mark or without.

    Raises:
        ApiError: 400 if it is none, as NaN and Infinity are, or if it is too deep or holds half a
            character or a number of more than 64 bits.
    """
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
        require_usable(value)
    except ApiError:
        raise
    except UnicodeDecodeError:
        raise invalid("the body is not UTF-8", code="invalid_json") from None
    except RecursionError:
        raise invalid("the JSON is nested too deeply", code="invalid_json") from None
    except ValueError as error:
        message = printable(f"the body is not JSON that can be used: {error}"[:200])
        raise invalid(message, code="invalid_json") from None
    return value


def _refuse_constant(name: str) -> None:
    raise invalid(f"{name} is not valid JSON", code="invalid_json")
