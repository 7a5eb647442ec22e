"""InternVL, SmolVLM and Idefics3 answer as transformers does.

Token ids and kept indices, at every keep, for pictures of all shapes, several in a prompt and in
several turns, and videos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiled_checkpoints import TILED_CHECKPOINTS, write_tiled_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from divprune.runtime.families import VideoFrames
from tests.end_to_end.reference import Media, messages_about, two_turns
from tests.end_to_end.tiled_reference import FPS, TiledReference
from tests.runtime.families.processors import SIZES, picture

NEW_TOKENS = 12
PROMPT = "What is in the picture?"
KEEPS = (1.0, 0.3, 0.1)
# One of each family meets everything; the others differ in tower and text model.
ONE_EACH = ["internvl-qwen2-hub", "smolvlm-llama-tied-merging"]
OTHERS = sorted(TILED_CHECKPOINTS.keys() - ONE_EACH)

Messages = list[dict[str, Any]]


class Both:
    """An engine directory at keep 0.3, and its checkpoint in transformers."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        checkpoint = write_tiled_checkpoint(folder / "checkpoint", name)
        fixed = {"keep": 0.3, "dtype": "fp32", "max_seq_len": 1024, "output": folder / "engine"}
        export_model(ExportOptions(model=str(checkpoint), **{**fixed, **options}))
        self.pipeline = Pipeline.from_dir(folder / "engine", backend="onnxruntime")
        self.reference = TiledReference(checkpoint)

    def check(self, media: Media, keep: float, positions: str = "contiguous") -> None:
        """One question about pictures and videos."""
        given = [each if isinstance(each, Image.Image) else _video(each) for each in media]
        asked = (
            messages_about(given, PROMPT, keys=True),
            messages_about(media, PROMPT, keys=False),
        )
        self.check_messages(*asked, media, keep, positions)

    def check_messages(
        self,
        messages: Messages,
        bare: Messages,
        media: Media,
        keep: float,
        positions: str = "contiguous",
    ) -> None:
        """A conversation, with its pictures and without."""
        expected = self.reference.answer_messages(bare, media, keep, NEW_TOKENS, positions)
        result = self.pipeline.chat(
            messages, keep=keep, max_new_tokens=NEW_TOKENS, ignore_eos=True
        ).result
        assert [image.num_image_tokens for image in result.images] == expected.num_tokens
        assert [list(image.kept_indices) for image in result.images] == expected.kept
        assert list(result.token_ids) == expected.token_ids


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Both]:
    made: dict[tuple[Any, ...], Both] = {}

    def get(name: str, **options: Any) -> Both:
        key = name, *sorted(options.items())
        if key not in made:
            made[key] = Both(name, tmp_path_factory.mktemp(name), **options)
        return made[key]

    return get


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ONE_EACH)
def test_pictures_of_every_shape(name: str, keep: float, both: Callable[..., Both]) -> None:
    for size in SIZES:
        both(name).check([picture(*size)], keep)


@pytest.mark.parametrize("name", OTHERS)
def test_other_towers_and_text_models(name: str, both: Callable[..., Both]) -> None:
    for keep in (1.0, 0.3):
        for size in ((40, 30), (16, 16), (20, 100)):
            both(name).check([picture(*size)], keep)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("name", ONE_EACH)
def test_two_pictures_of_different_size(name: str, keep: float, both: Callable[..., Both]) -> None:
    both(name).check([picture(40, 30), picture(16, 33, seed=1)], keep)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_picture_in_the_second_turn(name: str, both: Callable[..., Both]) -> None:
    images = [picture(40, 30), picture(30, 40, seed=1)]
    both(name).check(images[:1], 0.3)
    turns = [two_turns(images, PROMPT, keys=keys) for keys in (True, False)]
    both(name).check_messages(*turns, images, 0.3)


@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("name", ONE_EACH)
def test_videos(name: str, count: int, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name).check([_frames(count)], keep)


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_folder_of_frames_with_its_rate(
    name: str, both: Callable[..., Both], tmp_path: Path
) -> None:
    frames = _frames(3)
    for number, frame in enumerate(frames):
        frame.save(tmp_path / f"{number}.png")
    messages = messages_about([()], PROMPT, keys=True)
    messages[0]["content"][0]["video"] = str(tmp_path)
    result = both(name).pipeline.chat(messages, fps=FPS, max_new_tokens=NEW_TOKENS).result
    expected = both(name).reference.answer([frames], PROMPT, 0.3, len(result.token_ids))
    assert list(result.token_ids) == expected.token_ids
    assert both(name).pipeline.draw_overlay(tmp_path, result.images[0], fps=FPS).width > 30


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_picture_and_a_video_in_a_prompt(name: str, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name).check([picture(40, 30), _frames(3)], keep)


@pytest.mark.parametrize("name", ONE_EACH)
def test_original_positions(name: str, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name, positions="original").check([picture(40, 30)], keep, "original")


@pytest.mark.parametrize("target", ["jetpack6", "tensorrt-rtx"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_directories_for_tensorrt_answer_the_same_on_onnx_runtime(
    name: str, target: str, both: Callable[..., Both]
) -> None:
    for size in ((40, 30), (16, 16)):
        both(name, target=target).check([picture(*size)], 0.3)


def _frames(count: int) -> tuple[Image.Image, ...]:
    return tuple(picture(30, 20, seed) for seed in range(count))


def _video(frames: tuple[Image.Image, ...]) -> VideoFrames:
    return VideoFrames(frames, FPS)
