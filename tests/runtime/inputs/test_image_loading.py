from __future__ import annotations

import io
import os
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import ImageError
from divprune.runtime.inputs import image_loading
from divprune.runtime.inputs.image_loading import MAX_PIXELS, load_image

LEVELS_16 = np.array([[0, 1, 255, 256, 257], [4096, 32767, 32768, 65279, 65535]], dtype=np.uint16)


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels)[: 3 if channels > 1 else 2]
    return np.random.default_rng(width * 1000 + height).integers(0, 256, shape, dtype=np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG by hand, for what Pillow does not write. `extra` goes between IHDR and IDAT."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_16_bit_colour() -> bytes:
    rows = b"".join(b"\0" + np.repeat(row, 3).astype(">u2").tobytes() for row in LEVELS_16)
    return png(5, 2, 16, 2, rows)


def bomb() -> bytes:
    return png(20000, 20000, 8, 0, b"\0" * 64)


def palette_picture() -> Image.Image:
    return Image.fromarray(noise(31, 17)).quantize(16)


def rotated(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(noise(23, 11)), kind, exif=exif)


def pictures() -> dict[str, bytes]:
    grey, colour = Image.fromarray(noise(21, 33, 1)), Image.fromarray(noise(40, 25))
    made = {
        "landscape_jpeg": saved(Image.fromarray(noise(64, 37)), "JPEG"),
        "portrait_webp": saved(Image.fromarray(noise(37, 64)), "WEBP"),
        "one_pixel": saved(Image.fromarray(noise(1, 1))),
        "three_by_five": saved(Image.fromarray(noise(3, 5))),
        "grey": saved(grey),
        "grey_jpeg": saved(grey, "JPEG"),
        "grey_with_transparent_level": saved(grey, transparency=7),
        "grey_and_alpha": saved(Image.fromarray(noise(21, 33, 2), "LA")),
        "bilevel": saved(grey.convert("1")),
        "bilevel_with_transparent_level": png(8, 1, 1, 0, b"\0\xaa", chunk(b"tRNS", b"\0\0")),
        "palette": saved(palette_picture()),
        "palette_with_transparent_entry": saved(palette_picture(), transparency=3),
        "palette_with_alpha": saved(palette_picture(), transparency=bytes(range(0, 256, 16))),
        "gif": saved(palette_picture(), "GIF"),
        "colour_with_transparent_colour": saved(colour, transparency=colour.getpixel((2, 1))),
        "colour_and_alpha": saved(Image.fromarray(noise(40, 25, 4), "RGBA")),
        "cmyk_jpeg": saved(Image.fromarray(noise(40, 25, 4), "CMYK"), "JPEG"),
        "cmyk_tiff": saved(Image.fromarray(noise(40, 25, 4), "CMYK"), "TIFF"),
        "floating_point": saved(Image.fromarray(noise(9, 9, 1).astype(np.float32)), "TIFF"),
        "colour_16_bit": png_16_bit_colour(),
        "rotated_jpeg": rotated(6, "JPEG"),
    }
    return made | {f"orientation_{n}": rotated(n) for n in range(1, 9)}


PICTURES = pictures()


@pytest.mark.filterwarnings("ignore:Palette images")  # of transformers' own conversion
@pytest.mark.parametrize("name", PICTURES)
def test_pixels_and_transparent_colour_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("transformers.image_utils")
    path = tmp_path / name
    path.write_bytes(PICTURES[name])
    expected = reference.load_image(str(path))
    picture = load_image(path)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert picture.info.get("transparency") == expected.info.get("transparency")


TURNED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: p[::-1].transpose(1, 0, 2),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: p[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    expected = TURNED[orientation](noise(23, 11))
    assert np.array_equal(np.asarray(load_image(rotated(orientation))), expected)


def test_grey_is_repeated_alpha_is_dropped_and_no_ink_is_white() -> None:
    grey, alpha = noise(21, 33, 1), noise(40, 25, 4)
    assert np.array_equal(
        np.asarray(load_image(saved(Image.fromarray(grey)))), np.stack([grey] * 3, axis=-1)
    )
    assert np.array_equal(np.asarray(load_image(PICTURES["colour_and_alpha"])), alpha[..., :3])
    no_ink = saved(Image.new("CMYK", (4, 4), 0), "TIFF")
    assert (np.asarray(load_image(no_ink)) == 255).all()


def test_palette_with_alpha_loads_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    picture = load_image(PICTURES["palette_with_alpha"])
    assert "transparency" not in picture.info
    assert not recwarn.list


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(LEVELS_16)),
        saved(Image.fromarray(LEVELS_16), "TIFF"),
        saved(Image.fromarray(LEVELS_16.astype(">u2")), "TIFF"),
        saved(Image.fromarray(LEVELS_16.astype(np.int32)), "TIFF"),
        b"P5\n5 2\n65535\n" + LEVELS_16.astype(">u2").tobytes(),
        png_16_bit_colour(),
    ],
    ids=["png", "tiff", "big_endian_tiff", "mode_i_tiff", "pgm", "png_colour"],
)
def test_16_bits_are_scaled_to_8_and_not_clipped(data: bytes) -> None:
    expected = np.array([[0, 0, 0, 1, 1], [16, 127, 128, 254, 255]], dtype=np.uint8)
    assert np.array_equal(np.asarray(load_image(data)), np.stack([expected] * 3, axis=-1))


def test_8_bit_levels_survive_the_way_through_16_bits() -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    picture = load_image(saved(Image.fromarray(levels * 257)))
    assert np.array_equal(np.asarray(picture)[..., 0], levels)


def test_16_bit_picture_with_exif_orientation_is_scaled_and_rotated() -> None:
    picture = Image.fromarray(LEVELS_16)
    picture.getexif()[0x0112] = 6
    expected = (LEVELS_16 >> 8)[::-1].T
    assert np.array_equal(np.asarray(load_image(picture))[..., 0], expected)


@pytest.mark.parametrize("levels", [[0, 65536], [-1, 5]])
def test_grey_levels_beyond_16_bits_are_refused(levels: list[int]) -> None:
    picture = Image.fromarray(np.array([levels], dtype=np.int32))
    with pytest.raises(ImageError, match=f"levels from {levels[0]} to {levels[1]}"):
        load_image(picture)


def test_path_text_bytes_and_pillow_image_give_the_same_picture(tmp_path: Path) -> None:
    data = PICTURES["landscape_jpeg"]
    path = tmp_path / "http_picture.jpg"
    path.write_bytes(data)
    expected = np.asarray(load_image(data))
    for source in (path, str(path), Image.open(path)):
        assert np.array_equal(np.asarray(load_image(source)), expected)


def test_pillow_image_is_left_as_it_is() -> None:
    source = Image.open(io.BytesIO(PICTURES["palette_with_alpha"]))
    picture = load_image(source)
    assert source.mode == "P"
    assert isinstance(source.info["transparency"], bytes)
    picture.putpixel((0, 0), (1, 2, 3))
    rgb = Image.new("RGB", (2, 2))
    load_image(rgb).putpixel((0, 0), (1, 2, 3))
    assert rgb.getpixel((0, 0)) == (0, 0, 0)


def pipe_to_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe_to_stdin(monkeypatch, PICTURES["grey"])
    assert load_image("-").size == (21, 33)


def test_standard_input_that_is_a_terminal_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    with os.fdopen(follower) as terminal, os.fdopen(leader, "w"):
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(ImageError, match="no picture on standard input"):
            load_image("-")


@pytest.mark.parametrize("data", [b"", b"some words"])
def test_bad_standard_input_is_named(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    pipe_to_stdin(monkeypatch, data)
    with pytest.raises(ImageError, match=r"^standard input is"):
        load_image("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_named_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(PICTURES["grey"],))
    writer.start()
    assert load_image(pipe).size == (21, 33)
    writer.join()


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"just some words"), "is not a picture"),
        (lambda path: path.write_bytes(PICTURES["landscape_jpeg"][:1200]), "cannot be decoded"),
        (lambda path: path.write_bytes(PICTURES["portrait_webp"][:900]), "picture|decoded"),
        (lambda path: path.write_bytes(PICTURES["grey"][:400]), "cannot be decoded"),
        (lambda path: path.write_bytes(PICTURES["grey"][:20]), "picture|decoded"),
        (lambda path: path.write_bytes(bomb()), "too large to decode"),
    ],
    ids=[
        "missing", "directory", "empty", "no_picture", "cut_jpeg", "cut_webp", "cut_png",
        "cut_header", "bomb",
    ],
)  # fmt: skip
def test_bad_file_is_an_image_error_that_names_it(
    write: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.xyz"
    write(path)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path)
    assert str(path) in caught.value.what


def test_unusable_path_is_an_image_error() -> None:
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("x" * 5000)
    with pytest.raises(ImageError, match="cannot be opened"):
        load_image("a\0b")


def test_other_types_are_an_image_error() -> None:
    with pytest.raises(ImageError, match="cannot come from there"):
        load_image(np.zeros((3, 3, 3)))  # type: ignore[arg-type]


def test_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="has no pixels"):
        load_image(Image.new("RGB", (0, 4)))


def test_bomb_is_refused_before_decoding_even_where_pillow_would_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="20000 x 20000") as caught:
        load_image(bomb())
    assert str(MAX_PIXELS) in str(caught.value)


class Handler(BaseHTTPRequestHandler):
    """Serves the pictures by name, and several kinds of trouble."""

    def do_GET(self) -> None:
        route = getattr(self, "route_" + self.path.strip("/").replace("%20", "_"), None)
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

    def route_cut(self) -> None:
        self.reply(PICTURES["grey"][:400], length=len(PICTURES["grey"]))

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
        ("cut", "cannot be decoded"),
        ("local", "cannot be fetched"),
    ],
)
def test_url_without_a_picture_is_an_image_error_that_names_it(
    server: str, route: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        load_image(f"{server}/{route}")
    assert f"{server}/{route}" in caught.value.what


@pytest.mark.parametrize("limit", ["_SOCKET_TIMEOUT_S", "_DOWNLOAD_TIMEOUT_S"])
def test_slow_url_is_given_up(server: str, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loading, limit, 0.2)
    route = "stalled" if limit == "_SOCKET_TIMEOUT_S" else "dripping"
    with pytest.raises(ImageError, match=r"timed out|not complete"):
        load_image(f"{server}/{route}")


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
    monkeypatch.setattr(image_loading, "MAX_STREAM_BYTES", 100)
    pipe_to_stdin(monkeypatch, PICTURES["grey"])
    for source in (f"{server}/grey", "-"):
        with pytest.raises(ImageError, match=r"too long[\s\S]*at most 100 bytes"):
            load_image(source)
