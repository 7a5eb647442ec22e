"""Videos from files, animations and folders; what is wrong with one is said by name."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.errors import ImageError, VideoError
from divprune.runtime.inputs.video import LazyFrames, load_video
from tests.runtime.inputs.test_image_loading import EXIF_BLOCKS, chunk, jpeg_with_exif

SIZE = (64, 48)


def frames(count: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Frames of one grey each, brighter with time: compression cannot confuse them."""
    return [Image.new("RGB", size, (level, level, level)) for level in grey(count)]


def grey(count: int) -> list[int]:
    return [20 + 200 * number // max(count - 1, 1) for number in range(count)]


def levels(pictures: Sequence[Image.Image]) -> list[float]:
    return [float(np.asarray(picture).mean()) for picture in pictures]


def write_video(path: Path, count: int, *, codec: str = "mpeg4", rate: int = 10) -> Path:
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for picture in frames(count):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_file_gives_its_frames_in_order(ending: str, tmp_path: Path) -> None:
    video = load_video(write_video(tmp_path / f"clip.{ending}", 12))
    assert len(video.frames) == 12
    assert video.fps == pytest.approx(10)
    assert {picture.size for picture in video.frames} == {SIZE}
    np.testing.assert_allclose(levels(video.frames), grey(12), atol=4)


def test_bytes_of_a_file_are_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    video = load_video(path.read_bytes())
    np.testing.assert_allclose(levels(video.frames), grey(5), atol=4)


def data_uri(path: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"


@pytest.mark.parametrize("make", [Path.as_uri, data_uri])
def test_urls_of_a_file_are_a_video(make: Any, tmp_path: Path) -> None:
    video = load_video(make(write_video(tmp_path / "clip.mp4", 5)))
    np.testing.assert_allclose(levels(video.frames), grey(5), atol=4)


def test_frames_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    video = load_video(str(write_video(tmp_path / "clip.mp4", 9)))
    wanted = [8, 0, 4, 4, -1]
    np.testing.assert_allclose(
        levels([video.frames[place] for place in wanted]),
        [grey(9)[place] for place in wanted],
        atol=4,
    )
    np.testing.assert_allclose(levels(video.frames[2:5]), grey(9)[2:5], atol=4)
    with pytest.raises(IndexError):
        video.frames[9]


def test_frames_that_are_passed_over_are_not_converted() -> None:
    made: list[int] = []

    def make(number: int) -> Image.Image:
        made.append(number)
        return Image.new("RGB", (1, 1))

    lazy = LazyFrames(6, lambda: iter([lambda n=n: make(n) for n in range(6)]), "a video")
    assert [lazy[place] for place in (1, 1, 4)]
    assert made == [1, 4]


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_an_animation_gives_its_frames_and_their_rate(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{ending}"
    first, *others = frames(6)
    first.save(path, save_all=True, append_images=others, duration=200)
    video = load_video(path)
    assert len(video.frames) == 6
    assert video.fps == 5
    assert all(picture.mode == "RGB" for picture in video.frames)
    np.testing.assert_allclose(levels(video.frames), grey(6), atol=4)


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        frames(3)[number].save(tmp_path / f"frame-{number}.png")
    (tmp_path / "notes.txt").write_text("no frame")
    video = load_video(tmp_path)
    assert video.fps is None
    assert levels(video.frames) == grey(3)


@pytest.mark.parametrize("name", ["0.jpg", "0.tif"])
def test_frames_of_a_folder_are_upright(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    frames(1)[0].save(tmp_path / name, exif=exif)
    frames(1, SIZE[::-1])[0].save(tmp_path / "1.png")
    assert {picture.size for picture in load_video(tmp_path).frames} == {SIZE[::-1]}


@pytest.mark.parametrize("block", sorted(EXIF_BLOCKS))
def test_damaged_metadata_of_a_frame_says_nothing_about_it(tmp_path: Path, block: str) -> None:
    frames(1)[0].save(tmp_path / "0.png")
    (tmp_path / "1.jpg").write_bytes(jpeg_with_exif(1, (0x4746, 6, 1, b"\xff\0\0\0"), size=SIZE))
    plain = (tmp_path / "0.png").read_bytes()
    exif = chunk(b"eXIf", EXIF_BLOCKS[block])
    (tmp_path / "2.png").write_bytes(plain[:33] + exif + chunk(b"gAMA", b"") + plain[33:])
    video = load_video(tmp_path)
    assert [picture.size for picture in video.frames] == [SIZE] * 3


def test_frames_of_different_sizes_are_refused_by_name(tmp_path: Path) -> None:
    frames(1)[0].save(tmp_path / "0.png")
    frames(1, (64, 50))[0].save(tmp_path / "1.png")
    with pytest.raises(VideoError, match=r"(?s)64 x 48.*64 x 50.*1\.png"):
        load_video(tmp_path)


def test_a_damaged_frame_of_a_folder_is_named(tmp_path: Path) -> None:
    frames(1)[0].save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"nonsense")
    with pytest.raises(ImageError, match=r"1\.png is not a picture"):
        load_video(tmp_path)


def test_a_folder_without_pictures_holds_no_frames(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="holds no frames"):
        load_video(tmp_path)


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    path = tmp_path / "empty.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        container.start_encoding()
    with pytest.raises(VideoError, match="holds no frames"):
        load_video(path)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    with pytest.raises(VideoError, match=r"(?s)holds no video.*audio"):
        load_video(path)


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_a_file_that_is_no_video_is_refused(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"clip\.mp4 cannot be decoded"):
        load_video(path)


def test_a_video_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 12)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(VideoError, match=r"clip\.mp4"):
        levels(load_video(path).frames)


def test_a_codec_without_a_decoder_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", 3)
    content = path.read_bytes()
    assert b"FMP4" in content
    path.write_bytes(content.replace(b"FMP4", b"zq9!"))
    with pytest.raises(VideoError, match=r"(?s)PyAV cannot decode.*libx264"):
        load_video(path)


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    frames(1)[0].save(tmp_path / "a.jpg")
    with pytest.raises(VideoError, match=r"(?s)is a picture.*not as a video"):
        load_video(tmp_path / "a.jpg")


def test_without_pyav_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r'pip install "divprune-edge\[video\]"'):
        load_video(path)


@pytest.mark.parametrize("source", ["no/such/clip.mp4", 7])
def test_what_is_not_there_is_refused(source: Any) -> None:
    with pytest.raises(VideoError, match="a folder of frames"):
        load_video(source)


@pytest.mark.parametrize(
    "name", ["x" * 5000, "a\0.mp4", "a.mp4/b.mp4", "loop", "pipe", "/dev/null"]
)
def test_a_path_that_is_no_video_is_refused_in_few_words(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(VideoError, match=r"cannot be opened|is no file") as caught:
        load_video(tmp_path / name)
    assert len(str(caught.value)) < 600


def test_what_is_no_file_is_no_frame_of_a_folder(tmp_path: Path) -> None:
    frames(1)[0].save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "0.png")
    (tmp_path / "2.png").mkdir()
    (tmp_path / "3.png").symlink_to("nowhere")
    assert len(load_video(tmp_path).frames) == 1


def test_equal_files_have_equal_fingerprints_and_changed_ones_have_not(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 2)
    first, again = load_video(path).fingerprint, load_video(path).fingerprint
    assert first == again
    write_video(path, 3)
    assert load_video(path).fingerprint != first
