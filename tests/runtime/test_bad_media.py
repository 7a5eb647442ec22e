"""Videos and conversations that cannot be answered: ``divprune-run`` says why and exits with 2."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from divprune.runtime.cli.run import main
from divprune.runtime.directory.manifest import DimRange
from tests.advice.covered import ELSEWHERE
from tests.advice.tools import Refusal, assert_gave, attempt
from tests.runtime.engine_copies import copy_engine, read_manifest
from tests.runtime.inputs.test_video import frames, write_video

pytest.importorskip("onnxruntime")
pytest.importorskip("torch", reason="the engine directory is exported here")

(NUMBER_OF_CROPS,) = (key for key in ELSEWHERE if "MediaEncoder._check_size" in key)
WRONG_FORM = [
    ([], "messages has another form"),
    ({"role": "user"}, "messages has another form"),
    (["hello"], "messages[0] has another form"),
    ([{"role": "king", "content": "x"}], "messages[0].role has another form"),
    ([{"role": "user"}], "messages[0].content has another form"),
    ([{"role": "user", "content": [{"type": "video"}]}], "messages[0].content[0] has another"),
    ([{"role": "user", "content": [{"type": "song"}]}], "messages[0].content[0].type has another"),
    (
        [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "video_url", "video_url": {"href": "b"}}]},
        ],
        "messages[1].content[0].video_url has another form",
    ),
    ([{"role": "assistant", "content": "x"}], "nothing to answer"),
    ([{"role": "user", "content": " "}], "is empty"),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA-NeXT-Video in miniature: pictures and videos of up to 22 frames."""
    from anyres_checkpoints import write_anyres_checkpoint

    from divprune.export.export_model import ExportOptions, export_model

    folder = tmp_path_factory.mktemp("bad-media")
    model = str(write_anyres_checkpoint(folder / "checkpoint", "next-video-llama-hub"))
    output = folder / "engine"
    export_model(ExportOptions(model=model, keep=0.3, dtype="fp32", verify=False, output=output))
    return output


@pytest.fixture
def refused(engine: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the tool, which has to refuse; what it says."""

    def run(*arguments: object, engine: Path = engine) -> str:
        code = main([str(engine), *map(str, arguments), "--max-new-tokens", "1", "--threads", "1"])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert "Traceback" not in err
        return err

    return run


def header_alone(folder: Path) -> Path:
    av: Any = pytest.importorskip("av")
    path = folder / "clip.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def cut_off(folder: Path) -> Path:
    path = write_video(folder / "clip.mp4", 12)
    path.write_bytes(path.read_bytes()[:-200])
    return path


def overwritten(folder: Path) -> Path:
    """The headers say twelve frames, and behind the first there are none."""
    path = write_video(folder / "clip.avi", 12)
    content = bytearray(path.read_bytes())
    second = content.index(b"00dc", content.index(b"00dc") + 4) + 8
    end = content.index(b"idx1")
    content[second:end] = bytes(end - second)
    path.write_bytes(content)
    return path


def of_another_codec(folder: Path) -> Path:
    path = write_video(folder / "clip.avi", 3)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"zq9!"))
    return path


def no_video(folder: Path) -> Path:
    (folder / "clip.mp4").write_bytes(b"no video at all" * 100)
    return folder / "clip.mp4"


def empty_folder(folder: Path) -> Path:
    (folder / "frames").mkdir()
    return folder / "frames"


def picture(folder: Path) -> Path:
    frames(1)[0].save(folder / "a.png")
    return folder / "a.png"


@pytest.mark.parametrize(
    "make, message",
    [
        (header_alone, "holds no frames"),
        (empty_folder, "holds no frames"),
        (cut_off, "clip.mp4"),
        (overwritten, "clip.avi"),
        (of_another_codec, "ffmpeg -i INPUT -c:v libx264"),
        (no_video, "cannot be decoded"),
        (picture, "give it as a picture"),
        (lambda folder: folder / "missing.mp4", "does not exist"),
    ],
)
def test_a_video_that_cannot_be_read_is_refused(make, message, refused, tmp_path):
    assert message in refused("--video", make(tmp_path))


def test_a_video_without_pyav_is_refused_with_the_command(refused, tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    assert 'pip install "divprune-edge[video]"' in refused("--video", path)


@pytest.mark.parametrize("count, message", [(23, "from 1 to 22"), (0, "at least 1")])
def test_more_frames_than_the_directory_allows_are_refused(count, message, refused, tmp_path):
    for number, frame in enumerate(frames(24)):
        frame.save(tmp_path / f"{number:02}.png")
    shown = refused("--video", tmp_path, "--num-frames", count)
    assert message in shown
    assert ("export again with --max-image-tokens 92" in shown) == (count == 23)


@pytest.mark.parametrize("minimum, maximum, more", [(1, 3, True), (4, 30, False)])
def test_a_picture_of_another_size_is_taken_instead_of_one_that_the_directory_refuses(
    engine, tmp_path, minimum, maximum, more
):
    """Of a directory whose manifest bounds the graph more narrowly than the family knows."""
    dims = {**read_manifest(engine).dims, "crops": DimRange(minimum, minimum, maximum)}
    narrow = copy_engine(engine, tmp_path / "narrow", dims=dims)
    for name, size in (("small", (16, 16)), ("large", (640, 480))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")

    def ask(directory: Path, name: str) -> Refusal:
        words = f"divprune-run {directory} {tmp_path / name}.png -q --max-new-tokens 1"
        return attempt([*words.split(), "--threads", "1"])

    wrong, right = ("large", "small") if more else ("small", "large")
    refusal = ask(narrow, wrong)
    assert_gave(refusal, NUMBER_OF_CROPS)
    assert f"this image has {'more' if more else 'fewer'} crops than the engine" in refusal.message
    assert f"{minimum} to {maximum}" in refusal.message
    assert refusal.fix.startswith(f"give a {'smaller' if more else 'larger'} picture")
    assert ask(narrow, right).code == 0
    assert ("--max-image-tokens" in refusal.fix) == more
    assert ask(engine, wrong).code == 0  # exported with more of them


def test_a_prompt_of_more_tokens_than_the_cache_holds_is_refused(refused, tmp_path):
    Image.new("RGB", (640, 480)).save(tmp_path / "a.png")
    shown = refused(tmp_path / "a.png", "--keep", "1.0", "--max-seq-len", 40)
    assert "the prompt is too long" in shown


@pytest.mark.parametrize("messages, message", WRONG_FORM)
def test_messages_of_another_form_are_refused_with_the_place(messages, message, refused, tmp_path):
    file = tmp_path / "messages.json"
    file.write_text(json.dumps(messages))
    assert message in refused("--messages", file)


def test_a_file_that_is_no_json_is_refused(refused, tmp_path):
    (tmp_path / "messages.json").write_text("[{")
    assert "is not JSON that can be read" in refused("--messages", tmp_path / "messages.json")


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_a_picture_in_a_role_that_the_template_does_not_show_is_refused(
    role, engine, refused, tmp_path
):
    template = (
        "{% for m in messages %}{% for part in m['content'] %}"
        "{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% elif m['role'] == 'user' %}{{ '<image>' }}{% endif %}{% endfor %}{% endfor %}"
    )
    copy = copy_engine(
        engine, tmp_path / "engine", files={"chat_template.jinja": template.encode()}
    )
    frames(1)[0].save(tmp_path / "a.png")
    shown = {"type": "image", "image": str(tmp_path / "a.png")}
    messages = [{"role": role, "content": [shown]}, {"role": "user", "content": "What is it?"}]
    (tmp_path / "messages.json").write_text(json.dumps(messages))
    message = refused("--messages", tmp_path / "messages.json", engine=copy)
    assert f"messages[0].content[0] ({role})" in message
    assert "messages of a role whose content the template writes (user)" in message


@pytest.mark.parametrize("value", ["auto:0", "auto:1.01", "auto:-1", "auto:nan", "auto:", "auto:x"])
@pytest.mark.parametrize("tool", ["run", "chat", "serve", "batch", "eval", "bench", "plan"])
def test_a_similarity_out_of_range_is_refused_by_every_tool_before_anything_is_opened(
    tool, value, capsys
):
    more = {"batch": ["in.jsonl", "out"], "eval": ["in.jsonl"]}.get(tool, [])
    command = importlib.import_module(f"divprune.runtime.cli.{tool}").main
    try:
        code = command(["missing", *more, f"--keep={value}"])
    except SystemExit as left:  # argparse's own
        code = left.code
    shown = capsys.readouterr().err
    assert code == 2
    assert "--keep" in shown
    assert "missing" not in shown
    assert "0 < C <= 1" in shown or "auto:" in shown
