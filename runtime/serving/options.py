"""What a server allows, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from divprune.runtime.errors import OptionError

__all__ = ["ServerOptions"]

_MIB = 2**20
_FLAGS = {
    "timeout_s": "--timeout",
    "body_timeout_s": "--body-timeout",
    "grace_s": "--grace",
    "max_cache_bytes": "--max-cache-mib",
}


@dataclass(frozen=True)
class ServerOptions:
    """Limits and switches of a server.

    Attributes:
        model_name: What clients call the model.
        keep: Fraction of visual tokens kept where a request does not say; None: as exported.
        api_keys: Keys that are accepted; none: everybody may ask.
        allowed_hosts: Further names this server is reached under; without keys a request for
            any other name is refused, so that a web page cannot reach it by a name of its own.
        max_queue: Requests that may wait.
        max_body: Bytes of a request.
        max_pixels: Pixels of one picture, and of all pictures of a request together.
        max_images: Pictures and videos of a request.
        max_waiting_bytes: Decoded pictures of all requests that wait, in bytes.
        max_cache_bytes: Features of pictures that were encoded before.
        max_tokens: Longest answer, and its length where a request does not say.
        timeout_s: Seconds from the end of a request's body to the end of its answer.
        body_timeout_s: Seconds a client has to send a body.
        grace_s: Seconds that accepted requests have once the server was asked to stop.
        allow_urls: Hosts pictures may be fetched from; ``*`` is any; empty: none.
        encode_ahead: Encode pictures of the next request while an answer is being decoded.
        media_dir: Folder below which ``file:`` URLs may point; None: nowhere.
    """

    model_name: str
    keep: float | str | None = None
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_queue: int = 16
    max_body: int = 32 * _MIB
    max_pixels: int = 40_000_000
    max_images: int = 16
    max_waiting_bytes: int = 512 * _MIB
    max_cache_bytes: int = 256 * _MIB
    max_tokens: int = 1024
    timeout_s: float = 600.0
    body_timeout_s: float = 60.0
    grace_s: float = 30.0
    allow_urls: tuple[str, ...] = ()
    encode_ahead: bool = False
    media_dir: Path | None = None

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_body", "max_pixels", "max_images", "max_tokens"):
            if getattr(self, name) < 1:
                flag = "--" + name.replace("_", "-")
                raise OptionError(
                    f"{flag} cannot be used", expected="1 or more", found=getattr(self, name)
                )
        for name in ("timeout_s", "body_timeout_s", "grace_s", "max_cache_bytes"):
            if not getattr(self, name) >= 0:
                flag = _FLAGS[name]
                raise OptionError(
                    f"{flag} cannot be used",
                    expected="0 or more",
                    found=getattr(self, name),
                )
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise OptionError(
                    "an API key cannot be used",
                    expected="8 or more printable ASCII characters without spaces",
                    found=f"{len(key)} characters",
                    fix='--api-key "$(openssl rand -hex 24)"',
                )
        if self.media_dir is not None and not self.media_dir.is_dir():
            raise OptionError(
                "--media-dir is not a folder",
                expected="a folder with pictures",
                found=self.media_dir,
            )
