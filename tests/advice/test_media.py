"""Advice about pictures and videos, given by the families and the readers of files."""

from __future__ import annotations

import base64
import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from divprune.runtime.families import VideoFrames
from divprune.runtime.families.llava_next import LlavaNext
from divprune.runtime.inputs import image_loading, image_sources
from divprune.runtime.inputs.download import download
from divprune.runtime.inputs.image_loading import load_image
from divprune.runtime.inputs.image_processor import ImageProcessor
from divprune.runtime.inputs.video import LazyFrames, load_video
from divprune.runtime.pipeline import Pipeline
from tests.advice.covered import MEDIA
from tests.advice.tools import assert_gave, refused
from tests.runtime.families import test_internvl, test_qwen, test_smolvlm
from tests.runtime.families.anyres_cases import NEXT_FACTS, NEXT_PROCESSOR
from tests.runtime.families.test_frames import next_video
from tests.runtime.inputs.test_video import write_video


def picture(width: int = 64, height: int = 48) -> Image.Image:
    return Image.linear_gradient("L").convert("RGB").resize((width, height))


def video(count: int, fps: float | None = None) -> VideoFrames:
    return VideoFrames((picture(),) * count, fps=fps)


def number(fix: str, option: str) -> int:
    """The number that an advice gives to an option."""
    found = re.search(rf"{option} (\d+)", fix)
    assert found is not None, fix
    return int(found[1])


tiles, crops, cells = test_internvl.family, test_smolvlm.family, test_qwen.family
next_pictures = functools.partial(LlavaNext.from_facts, NEXT_FACTS, NEXT_PROCESSOR)
SILENT = {"video_sampling": None}

CASES: dict[str, tuple[Callable[[], object], Callable[[str], object]]] = {
    # Name: (what is refused, what its advice makes of it).
    "more frames than a directory takes": (
        lambda: next_video(60).prepare_video(video(20), 20),
        lambda fix: next_video(number(fix, "--max-image-tokens")).prepare_video(video(20), 20),
    ),
    "more frames than tiles": (
        lambda: tiles(20).prepare_video(video(9), 9),
        lambda fix: tiles(20).prepare_video(video(9), number(fix, "--num-frames")),
    ),
    "too few tokens for a tile": (
        lambda: tiles(1),
        lambda fix: tiles(number(fix, "--max-image-tokens")).prepare_image(picture()),
    ),
    "more frames than crops": (
        lambda: crops(20).prepare_video(video(9, 1.0), 9),
        lambda fix: crops(20).prepare_video(video(9, 1.0), number(fix, "--num-frames")),
    ),
    "too few tokens for a crop": (
        lambda: crops(1),
        lambda fix: crops(number(fix, "--max-image-tokens")).prepare_image(picture()),
    ),
    "nothing says how many frames": (
        lambda: crops(**SILENT).prepare_video(video(9, 1.0)),
        lambda fix: crops(**SILENT).prepare_video(video(9, 1.0), number(fix, "--num-frames")),
    ),
    "frames without a time, smolvlm": (
        lambda: crops().prepare_video(video(9)),
        lambda fix: crops().prepare_video(video(9, number(fix, "--fps"))),
    ),
    "frames without a time, qwen": (
        lambda: cells("qwen3_vl").prepare_video(video(9)),
        lambda fix: cells("qwen3_vl").prepare_video(video(9, number(fix, "--fps"))),
    ),
    "a directory without a video processor": (
        lambda: replace(cells("qwen3_vl"), videos=None).prepare_video(video(9, 1.0)),
        lambda fix: cells("qwen3_vl").prepare_video(video(9, 1.0)),
    ),
    "a ribbon, qwen": (
        lambda: cells("qwen3_vl").prepare_image(picture(2000, 4)),
        lambda fix: cells("qwen3_vl").prepare_image(picture(2000, 4).crop((0, 0, 400, 4))),
    ),
    "a ribbon for a small export": (
        lambda: cells("qwen3_vl", 17).prepare_image(picture(1000, 6)),
        lambda fix: cells("qwen3_vl", 17).prepare_image(picture(1000, 6).crop((0, 0, 60, 6))),
    ),
    "a video for LLaVA-1.6": (
        lambda: next_pictures(None).prepare_video(video(2)),
        lambda fix: [next_pictures(None).prepare_image(frame) for frame in video(2).frames],
    ),
    "too few tokens for a grid": (
        lambda: next_pictures(1),
        lambda fix: next_pictures(number(fix, "--max-image-tokens")).prepare_image(picture()),
    ),
    "an array of floats": (
        lambda: load_image(np.ones((3, 4, 5), np.float32)),
        lambda fix: load_image(np.full((4, 5, 3), 255, np.uint8)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_the_advice_says_is_taken(name):
    before, after = CASES[name]
    refusal = refused(before)
    assert_gave(refusal, MEDIA[name])
    after(refusal.fix)


def test_frames_of_a_video_are_pictures_for_a_model_of_pictures(engine_dir):
    pipeline = Pipeline.from_dir(engine_dir, threads=1)

    def ask(*parts: dict[str, object]) -> object:
        content = [*parts, {"type": "text", "text": "What?"}]
        return pipeline.chat([{"role": "user", "content": content}], max_new_tokens=1).result

    refusal = refused(lambda: ask({"type": "video", "video": video(2)}))
    assert_gave(refusal, MEDIA["a video for LLaVA-1.5"])
    assert refusal.fix.startswith("give single frames as pictures")
    ask(*({"type": "image", "image": frame} for frame in video(2).frames))


def test_a_picture_of_another_mode_is_opened_by_load_image(tmp_path):
    path = tmp_path / "a.png"
    Image.new("L", (64, 64)).save(path)
    config = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": False}
    config |= {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
    processor = ImageProcessor.from_config(config)
    refusal = refused(lambda: processor(Image.open(path)))
    assert_gave(refusal, MEDIA["a picture of another mode"])
    processor(load_image(path))


def test_a_picture_that_is_scaled_down_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(image_loading, "MAX_PIXELS", 1000)
    path = tmp_path / "a.png"
    picture().save(path)
    refusal = refused(lambda: load_image(path))
    assert_gave(refusal, MEDIA["too many pixels"])
    picture(32, 24).save(path)
    load_image(path)


def test_a_picture_too_long_for_a_url_is_taken_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    picture().save(path)
    monkeypatch.setattr(image_sources, "MAX_STREAM_BYTES", 100)
    uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    refusal = refused(lambda: load_image(uri))
    assert_gave(refusal, MEDIA["a long data URI"])
    load_image(path)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def test_a_picture_that_cannot_be_fetched_is_saved_as_a_file(served, tmp_path):
    path = tmp_path / "a.png"
    picture().save(path)
    missing = refused(lambda: load_image(f"{served}/none.png"))
    assert_gave(missing, MEDIA["a URL of nothing"])
    long = refused(lambda: download(f"{served}/a.png", 100))
    assert_gave(long, MEDIA["a long download"])
    load_image(f"{served}/a.png")
    load_image(path)


def test_videos_that_cannot_be_read_are_got_again(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", 12)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(200))
    refusal = refused(lambda: load_video(cut))
    assert_gave(refusal, MEDIA["a damaged video"])
    assert len(load_video(whole).frames) == 12


@pytest.mark.parametrize("tag", [b"AVS2", b"AVS3", b"EVC1"])
def test_a_video_without_a_decoder_here_is_converted_where_there_is_one(tmp_path, tag):
    there = write_video(tmp_path / "clip.avi", 12)
    (tmp_path / "INPUT").write_bytes(there.read_bytes().replace(b"FMP4", tag))
    refusal = refused(lambda: load_video(tmp_path / "INPUT"))
    assert_gave(refusal, MEDIA["a codec without a decoder"])
    command, _, source, option, codec, output = refusal.fix.split()
    assert (command, source, option) == ("ffmpeg", "INPUT", "-c:v")
    convert(there, tmp_path / output, codec)
    assert len(load_video(tmp_path / output).frames) == 12


def convert(source: Path, target: Path, codec: str) -> None:
    """What ``ffmpeg -i`` does, by the same libraries."""
    av = pytest.importorskip("av")
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream(codec, rate=old.streams.video[0].average_rate)
        stream.width, stream.height = old.streams.video[0].width, old.streams.video[0].height
        for frame in old.decode(video=0):
            new.mux(stream.encode(frame))
        new.mux(stream.encode())


def test_a_video_that_ends_early_is_got_again():
    def start(count: int) -> Iterator[Callable[[], Image.Image]]:
        return iter([picture] * count)

    refusal = refused(lambda: LazyFrames(3, lambda: start(2), "clip.mp4")[2])
    assert_gave(refusal, MEDIA["a video that ends early"])
    assert LazyFrames(3, lambda: start(3), "clip.mp4")[2].size == (64, 48)


def test_a_picture_called_a_video_and_frames_of_two_sizes(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    picture().save(folder / "0.png")
    alone = refused(lambda: load_video(folder / "0.png"))
    assert_gave(alone, MEDIA["a picture called a video"])
    load_image(folder / "0.png")
    picture(32, 24).save(folder / "1.png")
    unlike = refused(lambda: load_video(folder))
    assert_gave(unlike, MEDIA["frames of two sizes"])
    picture().save(folder / "1.png")
    assert len(load_video(folder).frames) == 2
