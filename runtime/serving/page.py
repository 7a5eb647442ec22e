"""The page at ``/``: one static file, and a policy that lets it load nothing else."""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.requests import Request

__all__ = ["content_security_policy", "page_response"]

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


async def page_response(request: Request) -> Response:
    """The page, compressed where the browser takes it so."""
    plain, packed, policy = _page()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-cache",
        "vary": "accept-encoding",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(packed, media_type="text/html", headers=headers)
    return Response(plain, media_type="text/html", headers=headers)


def content_security_policy(html: str) -> str:
    """A policy that runs this page's own script and style, by their hashes, and nothing else."""
    sources: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(sources['script'])}",
            f"style-src {' '.join(sources['style'])}",
            "img-src 'self' data: blob:",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


@functools.cache
def _page() -> tuple[bytes, bytes, str]:
    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    plain = html.encode()
    return plain, gzip.compress(plain, 9, mtime=0), content_security_policy(html)
