"""Who may ask: keys, the name a server was reached under, and the page a request came from.

Loopback alone keeps no browser out: any page that is open may send requests to this machine, and a
name that leads here (DNS rebinding) makes them look like its own. So requests of other origins are
refused, and without keys so is every name that this server does not go by.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import urllib.parse
from collections.abc import Mapping, Sequence

from divprune.runtime.serving.errors import forbidden, invalid, unauthorized

__all__ = ["Access"]


class Access:
    """Checks requests.

    Args:
        api_keys: Keys that are accepted; none: no key is asked for.
        allowed_hosts: Names beside ``localhost``, this machine's own and plain addresses.
    """

    def __init__(self, api_keys: Sequence[str], allowed_hosts: Sequence[str] = ()) -> None:
        self._keys = [hashlib.sha256(key.encode()).digest() for key in api_keys]
        machine = socket.gethostname().lower()
        own = ("localhost", machine, f"{machine}.local")
        self._hosts = {name.lower() for name in (*own, *allowed_hosts)}

    def check_place(self, headers: Mapping[str, str]) -> None:
        """Refuse other origins, and names that are not this server's.

        Raises:
            ApiError: 403, or 400 without a usable Host header.
        """
        host = headers.get("host", "")
        name = _name(host)
        if name is None:
            raise invalid("the Host header is missing or malformed", "Host")
        if not self._keys and not self._known(name):
            raise forbidden(f"this server is not known as {name[:100]}; see --allowed-host")
        origin = headers.get("origin")
        if origin is not None and urllib.parse.urlsplit(origin).netloc.lower() != host.lower():
            raise forbidden("requests of other web pages are refused")

    def check_key(self, headers: Mapping[str, str]) -> str:
        """The owner of a request: a short name for its key, empty where there are no keys.

        Raises:
            ApiError: 401 without a key that is known.
        """
        if not self._keys:
            return ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise unauthorized()
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, in constant time, whichever fits.
        matches = [hmac.compare_digest(digest, key) for key in self._keys]
        if not any(matches):
            raise unauthorized()
        return digest.hex()[:16]

    def _known(self, name: str) -> bool:
        if name in self._hosts or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def _name(host: str) -> str | None:
    """The host without its port, IPv6 without brackets."""
    try:
        return urllib.parse.urlsplit(f"//{host}").hostname
    except ValueError:
        return None
