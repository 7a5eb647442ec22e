from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from divprune.runtime.serving.errors import ApiError
from divprune.runtime.serving.requests.fetching import Fetcher, is_public

PICTURE = b"picture"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        status, headers, body = self.server.answer(self.path)  # type: ignore[attr-defined]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if callable(body):
            body(self.wfile)
        else:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Listener(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, str]] = []
        self.connections = 0
        self.answer: Callable[[str], tuple[int, dict[str, str], object]] = lambda _: (
            200,
            {},
            PICTURE,
        )

    def get_request(self) -> tuple[socket.socket, object]:
        self.connections += 1
        return super().get_request()

    @property
    def port(self) -> int:
        return self.server_port


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetcher(*hosts: str, **options: object) -> Fetcher:
    """Takes every name for loopback, and loopback for a public address."""
    fields = {
        "hosts": hosts or ("*",),
        "max_bytes": 1000,
        "allowed": lambda address: address == "127.0.0.1",
        "resolve": lambda *_: ["127.0.0.1"],
    }
    return Fetcher(**{**fields, **options})  # type: ignore[arg-type]


def refused(fetch: Fetcher, url: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        fetch(url)
    return caught.value


def test_bytes_behind_a_url_come_with_the_name_in_the_host_header(listener: Listener) -> None:
    assert fetcher()(f"http://example.org:{listener.port}/a b?c=ü") == PICTURE
    assert listener.seen == [("/a%20b?c=%C3%BC", f"example.org:{listener.port}")]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "user@127.0.0.1",
    ],
)
def test_this_machine_is_never_dialled(listener: Listener, host: str) -> None:
    assert refused(Fetcher(("*",), 1000), f"http://{host}:{listener.port}/").status == 400
    assert listener.connections == 0


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::7f00:1",
        "2001:0:7f00:1::",
        "ff02::1",
    ],
)
def test_address_that_is_not_public_is_known_as_such(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:93.184.215.14"])
def test_public_address_is_known_as_such(address: str) -> None:
    assert is_public(address)


def test_one_private_address_among_public_ones_is_enough_to_refuse(listener: Listener) -> None:
    fetch = fetcher(resolve=lambda *_: ["127.0.0.1", "10.0.0.1"])
    assert refused(fetch, f"http://example.org:{listener.port}/").code == "url_not_allowed"
    assert listener.connections == 0


def test_redirect_is_checked_like_the_first_address(listener: Listener) -> None:
    inner = Listener()
    try:
        listener.answer = lambda _: (302, {"Location": f"http://inner:{inner.port}/"}, b"")
        names = {"outer": "127.0.0.1", "inner": "10.0.0.1"}
        fetch = fetcher(resolve=lambda host, _: [names[host]])
        assert refused(fetch, f"http://outer:{listener.port}/").code == "url_not_allowed"
        assert (listener.connections, inner.connections) == (1, 0)
    finally:
        inner.server_close()


def test_name_is_looked_up_once_so_that_it_cannot_change_its_answer(listener: Listener) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])
    fetch = fetcher(resolve=lambda *_: next(answers))
    assert fetch(f"http://rebinding.example:{listener.port}/") == PICTURE


@pytest.mark.parametrize(
    "location",
    [
        *("file:///etc/passwd", "ftp://example.org/", "gopher://x/"),
        *("http://[::1", "http://a:b/", "http://", "", "//", "\xff\xfe", "http://a\x00/"),
    ],
)
def test_redirect_that_leads_to_no_picture_is_refused(listener: Listener, location: str) -> None:
    listener.answer = lambda _: (301, {"Location": location}, b"")
    assert refused(fetcher(), f"http://a:{listener.port}/").status == 400


def test_endless_redirects_are_given_up(listener: Listener) -> None:
    listener.answer = lambda path: (302, {"Location": path + "x"}, b"")
    assert "too often" in refused(fetcher(), f"http://a:{listener.port}/").message
    assert len(listener.seen) == 4


def test_other_hosts_than_allowed_are_refused(listener: Listener) -> None:
    assert fetcher("good.example")(f"http://GOOD.example:{listener.port}/") == PICTURE
    refused(fetcher("good.example"), f"http://bad.example:{listener.port}/")
    refused(fetcher("good.example"), f"http://good.example.bad.example:{listener.port}/")
    assert listener.connections == 1


def test_too_many_bytes_are_refused(listener: Listener) -> None:
    listener.answer = lambda _: (200, {}, b"x" * 1001)
    assert "1000 bytes" in refused(fetcher(), f"http://a:{listener.port}/").message


def test_status_other_than_200_is_refused(listener: Listener) -> None:
    listener.answer = lambda _: (404, {}, b"")
    assert "404" in refused(fetcher(), f"http://a:{listener.port}/").message


def test_sender_of_one_byte_now_and_then_meets_the_deadline(listener: Listener) -> None:
    def drip(file: object) -> None:
        for _ in range(100):
            file.write(b"x")  # type: ignore[attr-defined]
            time.sleep(0.1)

    listener.answer = lambda _: (200, {}, drip)
    start = time.monotonic()
    refused(fetcher(deadline_s=0.5), f"http://a:{listener.port}/")
    assert time.monotonic() - start < 5


def test_nobody_there_is_an_error_of_the_request() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert refused(fetcher(), f"http://a:{port}/").message == "the URL cannot be fetched"
