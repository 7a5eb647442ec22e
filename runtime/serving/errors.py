"""What a client is told when something goes wrong: OpenAI's error object and a status.

A message never holds a path or a traceback of this machine: those go to the log. ``fix`` lines
are left out, since they name commands for whoever runs the server.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from divprune.runtime.errors import (
    DivPruneError,
    ImageError,
    OptionError,
    PromptError,
    UnsupportedError,
)

__all__ = [
    "ApiError",
    "busy",
    "draining",
    "forbidden",
    "from_exception",
    "invalid",
    "timed_out",
    "too_large",
    "unauthorized",
    "unknown_model",
]

log = logging.getLogger(__name__)

_FLAG = re.compile(r"--([a-z][a-z-]*)")
_CODES = {
    ImageError: "invalid_image",
    PromptError: "invalid_prompt",
    OptionError: "invalid_value",
    UnsupportedError: "unsupported",
}


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: HTTP status.
        message: For the client.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        param: The field of the request that is wrong.
        retry_after: Seconds after which it may be tried again; None where trying again does
            not help, which clients that retry by themselves are told as well.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after

    def to_dict(self) -> dict[str, Any]:
        """The body of the response, or the event inside a stream."""
        error = {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` where trying again helps; otherwise a word against it."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"retry-after": str(self.retry_after)}


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """400: the request is at fault."""
    return ApiError(400, message, param=param, code=code)


def unauthorized() -> ApiError:
    """401: no key, or one that is not known."""
    return ApiError(
        401,
        "the API key is missing or wrong; send it as Authorization: Bearer KEY",
        kind="authentication_error",
        code="invalid_api_key",
    )


def forbidden(message: str) -> ApiError:
    """403: asked from a place that may not."""
    return ApiError(403, message, kind="permission_error", code="forbidden")


def unknown_model(asked: str, served: str) -> ApiError:
    """404: another model than the one that is served."""
    return ApiError(
        404,
        f"the model {asked[:200]!r} does not exist; this server has {served!r}",
        code="model_not_found",
        param="model",
    )


def too_large(message: str) -> ApiError:
    """413: the body has more bytes than are taken."""
    return ApiError(413, message, code="request_too_large")


def timed_out(message: str, status: int = 504) -> ApiError:
    """504 (or 408 while the request is being sent): too slow."""
    return ApiError(status, message, kind="timeout_error", code="timeout")


def busy(message: str, retry_after: int) -> ApiError:
    """429: no place in the queue."""
    return ApiError(
        429, message, kind="rate_limit_error", code="queue_full", retry_after=retry_after
    )


def draining() -> ApiError:
    """503: the server is going down."""
    return ApiError(
        503,
        "the server is shutting down",
        kind="server_error",
        code="shutting_down",
        retry_after=5,
    )


def from_exception(error: BaseException) -> ApiError:
    """What a client is told about an error from below.

    Errors of the request become 400; everything else is logged in full and told as 500 without
    details, and without being tried again: it would fail again.
    """
    if isinstance(error, ApiError):
        return error
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return invalid(_describe(error), code=_refine(error, code))
    log.error("a request failed", exc_info=error)
    return ApiError(
        500, "the server failed to answer; its log has the details", kind="server_error"
    )


def _describe(error: DivPruneError) -> str:
    parts = [error.what]
    if error.expected is not None:
        parts.append(f"expected {error.expected}")
    if error.found is not None:
        parts.append(f"found {error.found}")
    return _FLAG.sub(lambda flag: flag[1].replace("-", "_"), "; ".join(parts))


def _refine(error: DivPruneError, code: str) -> str:
    too_long = "too long" in error.what or "no room" in error.what
    return "context_length_exceeded" if isinstance(error, PromptError) and too_long else code
