"""What every request passes: access checks, headers of the answer, and the count of answers."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from divprune.runtime.serving.answers.responses import error_response
from divprune.runtime.serving.errors import ApiError, from_exception

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from divprune.runtime.serving.access import Access

__all__ = ["Gate"]

_WITHOUT_KEY = ("/", "/health", "/health/ready")
_COUNTED = "/v1/chat/completions"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
_CLOSED_POLICY = "default-src 'none'; frame-ancestors 'none'"


class Gate:
    """Middleware.

    Args:
        app: What is behind it.
        access: Who may pass.
        count: Told about every answer to a chat request: one, and its status.
    """

    def __init__(self, app: ASGIApp, access: Access, count: Callable[[float, str], None]) -> None:
        self._app = app
        self._access = access
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started: list[int] = []
        scope["divprune.arrived"] = monotonic()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.append(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("content-security-policy", _CLOSED_POLICY)
            await send(message)

        try:
            await self._pass(scope, receive, send_with_headers)
        except Exception as error:
            if started:
                raise
            await error_response(from_exception(error))(scope, receive, send_with_headers)
        finally:
            if scope["path"] == _COUNTED:
                status = scope.get("divprune.status") or (started[0] if started else 499)
                self._count(1, str(status))

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._access.check_place(headers)
            open_to_all = scope["path"] in _WITHOUT_KEY
            scope["divprune.owner"] = "" if open_to_all else self._access.check_key(headers)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
