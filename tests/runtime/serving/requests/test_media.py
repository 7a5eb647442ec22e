from __future__ import annotations

import base64
import importlib.util
import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from divprune.runtime.serving.errors import ApiError
from divprune.runtime.serving.options import ServerOptions
from divprune.runtime.serving.requests.media import decode_messages, read_media
from tests.runtime.inputs.test_image_loading import (
    FLOATS,
    drawing_in_every_encoding,
    jpeg_with_exif,
)
from tests.runtime.inputs.test_picture_blocks import CHUNKS

OPTIONS = ServerOptions("model")


def files(pictures: Mapping[str, object]) -> dict[str, bytes]:
    """Those of the pictures that a client can send."""
    return {name: data for name, data in pictures.items() if isinstance(data, bytes)}


DRAWINGS = files(drawing_in_every_encoding())
RAMPS = files({name: make() for name, make in FLOATS.items()})


def png(size: tuple[int, int] = (4, 3), colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def refused(messages: Any, options: ServerOptions = OPTIONS, fetch: Any = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_messages(*read_media(messages, options, fetch))
    assert caught.value.status == 400
    return caught.value


def test_pictures_are_decoded_where_they_stand_and_text_stays() -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        *user(
            {"type": "text", "text": "one"}, image(data_url(png())), image(data_url(png((5, 6))))
        ),
        {"role": "assistant", "content": "yes", "refusal": None},
        *user({"type": "text", "text": "two"}),
    ]
    read, media = read_media(messages, OPTIONS)
    assert [medium.num_bytes for medium in media] == [36, 90]
    decoded = decode_messages(read, media)
    assert [message["role"] for message in decoded] == ["system", "user", "assistant", "user"]
    parts = decoded[1]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "image"]
    assert [part["image"].size for part in parts[1:]] == [(4, 3), (5, 6)]
    assert decoded[2]["content"] == [{"type": "text", "text": "yes"}]


@pytest.mark.parametrize(
    "change",
    [
        lambda url: url.replace("image/png", ""),
        lambda url: url.replace("data:image", "DATA:IMAGE").replace("base64", "BASE64"),
        lambda url: url.rstrip("="),
        lambda url: url.replace("+", "-").replace("/", "_").replace("image_", "image/"),
        lambda url: url[:60] + "\n" + url[60:],
        lambda url: url.replace("+", "%2B").replace("/", "%2F").replace("image%2F", "image/"),
        lambda url: url.replace(";base64", ";charset=utf-8;base64"),
    ],
)
def test_spellings_of_a_data_url_that_clients_use_are_read(change: Any) -> None:
    _, (medium,) = read_media(user(image(change(data_url(png())))), OPTIONS)
    assert medium.data == png()


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,???",
        "data:image/png;base64,",
        data_url(b"no picture"),
        data_url(png()[:40]),
        "data:" + "a" * 1000 + ",",
    ],
)
def test_data_url_without_a_picture_is_refused_at_its_place(url: str) -> None:
    error = refused(user({"type": "text", "text": "x"}, image(url)))
    assert error.param == "messages[0].content[1].image_url"
    assert error.code == "invalid_image"


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_transparent_drawing_of_a_request_is_put_on_white(name: str) -> None:
    data = DRAWINGS[name]
    message, *_ = decode_messages(*read_media(user(image(data_url(data))), OPTIONS))
    picture = message["content"][0]["image"]
    assert (picture.mode, picture.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    assert picture.getpixel((10, 10)) == (0, 0, 0)


@pytest.mark.parametrize("block", sorted(CHUNKS))
def test_damaged_metadata_of_a_picture_in_a_request_is_passed_over(block: str) -> None:
    data = png()[:33] + CHUNKS[block] + png()[33:]
    message, *_ = decode_messages(*read_media(user(image(data_url(data))), OPTIONS))
    assert message["content"][0]["image"].getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_of_a_request_comes_upright(orientation: int) -> None:
    url = data_url(jpeg_with_exif(orientation, (0x4746, 6, 1, b"\xff\0\0\0")))
    message, *_ = decode_messages(*read_media(user(image(url)), OPTIONS))
    assert message["content"][0]["image"].size == ((4, 8) if orientation > 4 else (8, 4))


@pytest.mark.parametrize("kind", RAMPS)
def test_floats_of_a_request_are_scaled(kind: str) -> None:
    data = RAMPS[kind]
    message, *_ = decode_messages(*read_media(user(image(data_url(data))), OPTIONS))
    assert message["content"][0]["image"].getextrema() == ((0, 255),) * 3


def test_a_heic_picture_of_a_request_is_refused_by_its_format() -> None:
    if ".heic" in Image.EXTENSION or importlib.util.find_spec("pillow_heif"):
        pytest.skip("pillow-heif is installed")
    heic = b"\0\0\0\x18ftypheic" + bytes(64)
    assert "HEIC" in refused(user(image(data_url(heic)))).message


def test_video_passes_as_bytes() -> None:
    messages = user({"type": "video_url", "video_url": {"url": data_url(b"GIF", "image/gif")}})
    decoded = decode_messages(*read_media(messages, OPTIONS))
    assert decoded[0]["content"] == [{"type": "video", "video": b"GIF"}]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.png",
        "https://example.org/a.png",
        "HTTPS://example.org/a.png",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "/etc/passwd",
        "-",
        "ftp://example.org/a.png",
        "",
        None,
        3,
    ],
)
def test_nothing_is_fetched_or_read_by_default(url: object) -> None:
    assert "passwd" not in refused(user(image(url))).message


def test_url_is_fetched_by_what_is_allowed_to() -> None:
    seen: list[str] = []

    def fetch(url: str) -> bytes:
        seen.append(url)
        return png()

    read_media(user(image("https://example.org/a.png")), OPTIONS, fetch)
    assert seen == ["https://example.org/a.png"]


def test_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = user(image(data_url(png((11, 10)))))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    assert "100 pixels" in refused(messages, replace(OPTIONS, max_pixels=100)).message


def test_pixels_of_all_pictures_are_bounded_together() -> None:
    options = replace(OPTIONS, max_pixels=100)
    part = image(data_url(png((9, 9))))
    read_media(user(part), options)
    assert "together" in refused(user(part, part), options).message


def test_decompression_bomb_is_refused() -> None:
    file = io.BytesIO()
    Image.new("1", (30000, 30000)).save(file, "PNG")
    assert "pixels" in refused(user(image(data_url(file.getvalue())))).message


def test_number_of_pictures_is_bounded() -> None:
    options = replace(OPTIONS, max_images=2)
    assert "more than 2" in refused(user(*[image(data_url(png()))] * 3), options).message


@pytest.mark.parametrize(
    "message,place",
    [
        ({"role": "tool", "content": "x"}, "role"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"role": "user", "content": []}, "content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "content[0].type"),
        ({"role": "user", "content": ["x"]}, "content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": "\ud800"}]}, "content[0].text"),
        ({"role": "user", "content": "x", "extra": 1}, "extra"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, ""),
    ],
)
def test_message_of_another_form_is_refused_at_its_place(message: Any, place: str) -> None:
    assert (refused([message]).param or "").endswith(place)


def test_lone_surrogate_is_refused_also_in_plain_content() -> None:
    assert refused([{"role": "user", "content": "\ud800"}]).param == "messages[0].content[0].text"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "media"
    (root / "deep").mkdir(parents=True)
    (root / "a b.png").write_bytes(png())
    (root / "deep" / "c.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "way").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("url", ["file:a%20b.png", "file:///a%20b.png", "file:deep/c.png"])
def test_file_below_the_folder_is_read(folder: Path, url: str) -> None:
    options = replace(OPTIONS, media_dir=folder)
    _, (medium,) = read_media(user(image(url)), options)
    assert medium.data == png()


@pytest.mark.parametrize(
    "url",
    [
        "file:../secret.png",
        "file:deep/../../secret.png",
        "file:%2e%2e/secret.png",
        "file:link.png",
        "file:way/secret.png",
        "file:pipe.png",
        "file:deep",
        "file:",
        "file:none.png",
        "file:a\0.png",
        "file:///etc/hostname",
    ],
)
def test_nothing_outside_the_folder_is_read(folder: Path, url: str) -> None:
    error = refused(user(image(url)), replace(OPTIONS, media_dir=folder))
    assert error.message == "there is no such file"
