"""Where a picture comes from: URLs over the network, ``data:`` and ``file:``."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pytest

from divprune.runtime.errors import ImageError
from divprune.runtime.inputs import download, image_sources
from divprune.runtime.inputs.image_loading import load_image
from tests.runtime.inputs.test_image_loading import PICTURES, pipe_to_stdin


class Handler(BaseHTTPRequestHandler):
    """Serves the pictures by name, and several kinds of trouble."""

    def do_GET(self) -> None:
        route = getattr(
            self, "route_" + self.path.partition("?")[0].strip("/").replace("%20", "_"), None
        )
        if route is not None:
            route()
        elif self.path.strip("/") in PICTURES:
            self.reply(PICTURES[self.path.strip("/")])
        else:
            self.send_error(404)

    def reply(self, body: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def route_page(self) -> None:
        self.reply(b"<!DOCTYPE html><html><body>No picture here</body></html>")

    def route_empty(self) -> None:
        self.reply(b"")

    def route_with_space(self) -> None:
        self.reply(PICTURES["grey"])

    def route_agent(self) -> None:
        self.reply(PICTURES["grey" if "divprune" in self.headers["User-Agent"] else "one_pixel"])

    def route_redirect(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/grey")
        self.end_headers()

    def route_local(self) -> None:
        self.send_response(302)
        self.send_header("Location", "file:///etc/passwd")
        self.end_headers()

    def route_elsewhere(self) -> None:
        self.send_response(302)
        self.send_header("Location", unquote(self.path.partition("?")[2]))
        self.end_headers()

    def route_cut(self) -> None:
        self.reply(PICTURES["grey"][:400], length=len(PICTURES["grey"]))

    def route_ftp(self) -> None:
        self.send_response(302)
        self.send_header("Location", "ftp://127.0.0.1/picture.png")
        self.end_headers()

    def route_loop(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/loop")
        self.end_headers()

    def route_drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(40):
            self.wfile.write(b"a")
            time.sleep(0.05)

    def route_continue(self) -> None:
        for _ in range(400):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.005)

    def route_drip_chunks(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(40):
            self.wfile.write(b"0")
            time.sleep(0.05)

    def route_escapes(self) -> None:
        self.send_response(404, "No\x1b[31m")
        self.end_headers()

    def route_stalled(self) -> None:
        time.sleep(1.0)

    def route_dripping(self) -> None:
        self.reply(b"", length=1000)
        for _ in range(40):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def log_message(self, *args: object) -> None:
        """Keep the test output quiet."""


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with QuietServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("route", ["grey", "redirect", "with space", "agent"])
def test_url_is_fetched(server: str, route: str) -> None:
    picture = load_image(f"{server}/{route}")
    assert np.array_equal(np.asarray(picture), np.asarray(load_image(PICTURES["grey"])))


@pytest.mark.parametrize(
    "route, message",
    [
        ("nothing", "HTTP status 404"),
        ("page", "is not a picture"),
        ("empty", "is empty"),
        ("cut", "before the length it gave"),
        ("local", "Redirection to url .file:"),
        ("ftp", "it redirects to ftp:"),
        ("loop", "cannot be fetched"),
        ("escapes", r"No\\x1b\[31m"),
    ],
)
def test_url_without_a_picture_is_an_image_error_that_names_it(
    server: str, route: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(f"{server}/{route}")
    assert f"{server}/{route}" in caught.value.what


@pytest.mark.parametrize(
    "location",
    [
        "FTP://127.0.0.1/picture.png",
        "data:image/png;base64,AAAA",
        "gopher://127.0.0.1/x",
        "File:///etc/hostname",
        "http://[::1",
        "http://",
        "http://a:b/",
        "",
    ],
)
def test_a_redirect_that_leads_to_no_url_of_a_picture_is_refused(
    server: str, location: str
) -> None:
    with pytest.raises(ImageError, match=r"cannot be fetched|not a picture|is empty"):
        load_image(f"{server}/elsewhere?{quote(location, safe='')}")


@pytest.mark.parametrize("limit", ["_SOCKET_TIMEOUT_S", "_DOWNLOAD_TIMEOUT_S"])
def test_slow_url_is_given_up(server: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, limit, 0.2)
    route = "stalled" if limit == "_SOCKET_TIMEOUT_S" else "dripping"
    with pytest.raises(ImageError, match=r"timed out|not complete"):
        load_image(f"{server}/{route}")


@pytest.mark.parametrize("route", ["drip_headers", "continue", "drip_chunks", "dripping"])
def test_one_deadline_covers_everything(
    server: str, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_DOWNLOAD_TIMEOUT_S", 0.3)
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"timed out|not complete"):
        load_image(f"{server}/{route}")
    assert time.monotonic() - started < 1.5


def test_refused_connection_is_an_image_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/picture.png"
        with pytest.raises(ImageError, match=r"cannot be fetched[\s\S]*refused") as caught:
            load_image(url)
    assert url in caught.value.what


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://127.0.0.1:x/y", "http://a\u00e9.invalid/"]
)
def test_malformed_url_is_an_image_error(url: str) -> None:
    with pytest.raises(ImageError, match="cannot be fetched"):
        load_image(url)


def test_download_and_standard_input_stop_at_the_size_limit(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_sources, "MAX_STREAM_BYTES", 100)
    pipe_to_stdin(monkeypatch, PICTURES["grey"])
    for source in (f"{server}/grey", "-"):
        with pytest.raises(ImageError, match=r"too long[\s\S]*at most 100 bytes"):
            load_image(source)


# --- data and file URLs


@pytest.mark.parametrize(
    "uri",
    [
        lambda data: "data:image/png;base64," + base64.b64encode(data).decode(),
        lambda data: "DATA:;base64," + base64.b64encode(data).decode(),
        lambda data: "data:image/png;name=a;base64," + base64.b64encode(data).decode().rstrip("="),
        lambda data: "data:image/png;base64," + base64.urlsafe_b64encode(data).decode(),
        lambda data: "data:image/png;base64,\n " + quote(base64.encodebytes(data)),
        lambda data: "data:image/png," + quote(data),
    ],
)
def test_data_uri_is_decoded(uri: Callable[[bytes], str]) -> None:
    assert load_image(uri(PICTURES["grey"])).size == (21, 33)


@pytest.mark.parametrize(
    "uri", ["data:", "data:image/png", "data:;base64,*!", "data:,", "data:x,y"]
)
def test_data_uri_that_is_no_picture_is_refused_in_few_words(uri: str) -> None:
    with pytest.raises(ImageError) as caught:
        load_image(uri)
    assert len(str(caught.value)) < 500
    with pytest.raises(ImageError) as caught:
        load_image(uri + "a" * 10**6)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("prefix", ["file://", "file:", "FILE://", "file://localhost"])
def test_file_url_is_opened(prefix: str, tmp_path: Path) -> None:
    path = tmp_path / "a picture%.png"
    path.write_bytes(PICTURES["grey"])
    assert load_image(prefix + quote(str(path))).size == (21, 33)


@pytest.mark.parametrize("url", ["file://elsewhere/a.png", "file:a.png", "file://", "file:///no"])
def test_file_url_of_nothing_is_refused(url: str) -> None:
    with pytest.raises(ImageError, match=r"no file of this machine|does not exist"):
        load_image(url)
