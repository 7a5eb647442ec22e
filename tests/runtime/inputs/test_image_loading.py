from __future__ import annotations

import importlib.util
import io
import os
import struct
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import ImageError
from divprune.runtime.inputs import image_loading
from divprune.runtime.inputs.image_loading import MAX_PIXELS, load_image, read_size

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
        "colour_16_bit": png_16_bit_colour(),
        "rotated_jpeg": rotated(6, "JPEG"),
    }
    return made | {f"orientation_{n}": rotated(n) for n in range(1, 9)}


PICTURES = pictures()
TRANSPARENT = {name for name in PICTURES if "transparent" in name or "alpha" in name}


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - TRANSPARENT))
def test_pixels_of_opaque_pictures_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = pytest.importorskip("transformers.image_utils")
    path = tmp_path / name
    path.write_bytes(PICTURES[name])
    expected = reference.load_image(str(path))
    picture = load_image(path)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


@pytest.mark.parametrize("name", sorted(TRANSPARENT))
def test_what_is_transparent_is_put_on_white(name: str) -> None:
    picture = load_image(PICTURES[name])
    rgba = np.asarray(Image.open(io.BytesIO(PICTURES[name])).convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture) - expected).max() <= 1
    assert picture.info.get("transparency") is None


def with_palette_of_alpha() -> Image.Image:
    picture = Image.new("P", (20, 20), 0)
    picture.putpalette([0, 0, 0, 0, 0, 0, 0, 255], "RGBA")
    picture.paste(1, (5, 5, 15, 15))
    return picture


def drawing_in_every_encoding() -> dict[str, object]:
    """Black on transparent black: all one colour to whoever drops the alpha channel."""
    drawing = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    drawing.paste((0, 0, 0, 255), (5, 5, 15, 15))
    keyed = Image.new("RGB", drawing.size, (255, 0, 255))
    keyed.paste(drawing, mask=drawing.getchannel("A"))
    deep = np.where(np.asarray(drawing)[..., 3] > 0, 0, 40000).astype(np.uint16)
    return {
        "rgba": saved(drawing),
        "grey_alpha": saved(drawing.convert("LA")),
        "palette": saved(drawing.quantize(4)),
        "webp": saved(drawing, "WEBP", lossless=True),
        "tiff": saved(drawing, "TIFF"),
        "gif": saved(drawing.quantize(4), "GIF", transparency=0),
        "keyed": saved(keyed, transparency=(255, 0, 255)),
        "keyed_16_bit": saved(Image.fromarray(deep), transparency=40000),
        "qoi": saved(drawing, "QOI"),
        "tga": saved(drawing, "TGA"),
        "dds": saved(drawing, "DDS"),
        "icon": saved(drawing, "ICO", sizes=[drawing.size]),
        "animated": saved(drawing, save_all=True, append_images=[drawing.rotate(90)]),
        "palette_with_alpha": with_palette_of_alpha(),
        "pillow": drawing,
        "premultiplied": drawing.convert("RGBa"),
        "array": np.asarray(drawing),
    }


@pytest.mark.parametrize("name", drawing_in_every_encoding())
def test_a_transparent_drawing_stays_a_drawing_on_white(name: str) -> None:
    pixels = np.asarray(load_image(drawing_in_every_encoding()[name]))
    assert (pixels[0, 0] == 255).all()
    assert (pixels[10, 10] == 0).all()


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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_every_exif_orientation_comes_out_upright(orientation: int, kind: str) -> None:
    expected = TURNED[orientation](noise(23, 11))
    picture = load_image(rotated(orientation, kind))
    assert np.array_equal(np.asarray(picture), expected)
    assert np.array_equal(np.asarray(load_image(picture)), expected)  # it is not turned again


def test_no_copy_is_made_of_an_rgb_picture_that_is_only_looked_at() -> None:
    upright, turned = Image.new("RGB", (2, 2)), Image.open(io.BytesIO(rotated(6)))
    assert load_image(upright, copy=False) is upright
    assert load_image(turned, copy=False).size == (11, 23)


def test_grey_is_repeated_and_no_ink_is_white() -> None:
    grey = noise(21, 33, 1)
    assert np.array_equal(
        np.asarray(load_image(saved(Image.fromarray(grey)))), np.stack([grey] * 3, axis=-1)
    )
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
        load_image(object())  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 5, 4)])
def test_array_of_bytes_is_a_picture(shape: tuple[int, ...]) -> None:
    assert load_image(np.full(shape, 255, np.uint8)).size == (5, 4)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((4, 5, 3), np.int64),
        np.zeros(4, np.uint8),
        np.zeros((4, 0, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused_with_what_helps(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"uint8|at least 1 x 1"):
        load_image(array)


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


# --- metadata


def jpeg_with_exif(
    orientation: int, *entries: tuple[int, int, int, bytes], size: tuple[int, int] = (8, 4)
) -> bytes:
    """A JPEG whose EXIF has further entries: tag, type, count and four bytes of value."""
    plain = saved(Image.new("RGB", size, "red"), "JPEG")
    turned = (0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    ordered = sorted([turned, *entries])
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in ordered)
    ifd = struct.pack("<H", len(ordered)) + body + bytes(4)
    payload = b"Exif\0\0II*\0\x08\0\0\0" + ifd + bytes(64)
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + plain[2:]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    "entry",
    [
        (0x010F, 3, 1, struct.pack("<HH", 7, 0)),
        (0x0131, 11, 1, struct.pack("<f", 1.5)),
        (0x0213, 4, 1, struct.pack("<I", 70000)),
        (0x011A, 2, 3, b"72\0\0"),
        (0x4746, 6, 1, b"\xff\0\0\0"),
        (0xA433, 7, 4, b"ABCD"),
        (0x8825, 4, 1, struct.pack("<I", 4_000_000_000)),
        (0x8769, 4, 1, struct.pack("<I", 8)),
        (0x0112 + 1, 99, 1, bytes(4)),
    ],
)
def test_odd_metadata_says_nothing_about_the_pixels(
    orientation: int, entry: tuple[int, int, int, bytes]
) -> None:
    picture = load_image(jpeg_with_exif(orientation, entry))
    assert picture.size == ((8, 4) if orientation == 1 else (4, 8))


def tiff_with_tag(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """A TIFF whose directory, written anew behind the pixels, has one more entry."""
    plain = saved(Image.new("RGB", (8, 4), "red"), "TIFF")
    (start,) = struct.unpack_from("<I", plain, 4)
    (count_before,) = struct.unpack_from("<H", plain, start)
    entries = [plain[start + 2 + 12 * i :][:12] for i in range(count_before)]
    entries = sorted(
        [*entries, struct.pack("<HHI", tag, kind, count) + value],
        key=lambda entry: struct.unpack_from("<H", entry),
    )
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return plain[:4] + struct.pack("<I", len(plain)) + plain[8:] + directory


EXIF_BLOCKS = {
    "empty": b"",
    "cut": b"II*\0\x08\0",
    "another magic number": b"II)\0\x08\0\0\0" + bytes(16),
    "directory far away": b"II*\0\xff\xff\xff\x7f" + bytes(16),
    "entries without number": b"II*\0\x08\0\0\0\xff\xff" + bytes(16),
    "big TIFF": b"II+\0\x08\0\0\0" + bytes(30),
    "orientation as text": b"II*\0\x08\0\0\0\1\0\x12\1\2\0\2\0\0\x006\0\0\0" + bytes(8),
    "noise": bytes(range(256)) * 9,
}


@pytest.mark.parametrize("block", EXIF_BLOCKS)
def test_a_damaged_exif_block_says_nothing_about_the_pixels(block: str) -> None:
    plain, exif = Image.new("RGB", (8, 4), "red"), EXIF_BLOCKS[block]
    jpeg, whole = saved(plain, "JPEG"), saved(plain)
    payload = b"Exif\0\0" + exif
    segment = b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    for data in (
        jpeg[:2] + segment + jpeg[2:],
        whole[:33] + chunk(b"eXIf", exif) + whole[33:],
        saved(plain, "WEBP", exif=payload),
    ):
        assert load_image(data).size == (8, 4)


@pytest.mark.parametrize(
    "tag",
    [
        (0x02BC, 2, 4, b"<x>\0"),  # XMP as text
        (0x02BC, 3, 1, b"\7\0\0\0"),
        (0x8769, 4, 1, struct.pack("<I", 4_000_000_000)),
        (0x8649, 1, 4, b"8BIM"),
        (0x0131, 11, 1, struct.pack("<f", float("nan"))),
        (0x9286, 7, 2**31, bytes(4)),
        (0x8773, 7, 4, b"junk"),
    ],
)
def test_an_odd_tag_of_a_tiff_says_nothing_about_the_pixels(
    tag: tuple[int, int, int, bytes],
) -> None:
    picture = load_image(tiff_with_tag(*tag))
    assert picture.size == (8, 4)
    assert picture.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_in_the_header_may_be_asked_for_upright(
    kind: str, orientation: int, tmp_path: Path
) -> None:
    data = rotated(orientation, kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    expected = (23, 11) if orientation == 1 else (11, 23)
    assert read_size(path, upright=True) == expected
    assert sorted(read_size(data)) == [11, 23]


@pytest.mark.parametrize("data", [b"", b"some words", bomb(), b"\0\0\0\x18ftypheic" + bytes(64)])
def test_a_size_that_cannot_be_read_is_an_image_error(data: bytes) -> None:
    with pytest.raises(ImageError):
        load_image(data)
    if data != bomb():
        with pytest.raises(ImageError):
            read_size(data)


@pytest.mark.parametrize("head", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%!PS-Adobe-3.1 EPSF-3.0\r\n"])
def test_a_picture_that_is_a_program_is_not_run(
    head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("it was run"))
    data = head + b"%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    for read in (load_image, read_size):
        with pytest.raises(ImageError, match="is not run"):
            read(data)  # type: ignore[operator]


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_unknown_orientation_is_none(value: int) -> None:
    assert load_image(jpeg_with_exif(value)).size == (8, 4)


# --- floats, large pictures and HEIC


RAMP = np.tile(np.linspace(0, 1, 256, dtype=np.float32), (2, 1))
FLOATS: dict[str, Callable[[], object]] = {
    "tiff": lambda: saved(Image.fromarray(RAMP), "TIFF"),
    "compressed tiff": lambda: saved(Image.fromarray(RAMP), "TIFF", compression="tiff_lzw"),
    "little-endian PFM": lambda: b"Pf\n256 2\n-1.0\n" + RAMP.tobytes(),
    "big-endian PFM": lambda: b"Pf\n256 2\n1.0\n" + RAMP.astype(">f4").tobytes(),
    "Pillow": lambda: Image.fromarray(RAMP),
    "Pillow from 64 bits": lambda: Image.fromarray(RAMP.astype(np.float64)),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_from_0_to_1_are_scaled(kind: str) -> None:
    picture = load_image(FLOATS[kind]())  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(picture)[0, :, 0], np.arange(256))


@pytest.mark.parametrize("levels", [[0, 255], [0, 1.001], [-0.1, 1], [0, float("nan")], [0, 65535]])
def test_floats_of_another_scale_are_refused(levels: list[float]) -> None:
    with pytest.raises(ImageError, match="floats from 0 to 1"):
        load_image(saved(Image.fromarray(np.array([levels], np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_large_picture_is_halved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_loading, "_MAX_WORKING_PIXELS", 2000)
    picture = load_image(saved(Image.new("RGB", (100, 60), (200, 30, 30)), kind))
    assert picture.size == (50, 30)
    assert np.abs(np.asarray(picture).astype(int) - (200, 30, 30)).max() < 4


def test_pillow_says_nothing_about_a_large_picture(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    load_image(saved(Image.new("RGB", (40, 40))))
    assert not recwarn.list


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"hevc", b"heix", b"msf1"])
def test_heic_names_the_package_that_reads_it(brand: bytes) -> None:
    if ".heic" in Image.EXTENSION or importlib.util.find_spec("pillow_heif"):
        pytest.skip("pillow-heif is installed")
    with pytest.raises(ImageError, match="pip install pillow-heif"):
        load_image(b"\0\0\0\x18ftyp" + brand + bytes(64))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device")
def test_a_device_without_an_end_is_refused() -> None:
    with pytest.raises(ImageError, match="too long"):
        load_image("/dev/zero")


def test_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ImageError, match="no picture on standard input"):
        load_image("-")
