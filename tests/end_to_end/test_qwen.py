"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL answer as transformers does.

Token ids and kept indices, at every keep, for pictures of all shapes, several in a prompt with text
between them, and videos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_checkpoints import QWEN_CHECKPOINTS, write_qwen_checkpoint

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from divprune.runtime.families import VideoFrames
from tests.end_to_end.qwen_reference import FPS, QwenReference
from tests.end_to_end.reference import Media, messages_about, two_turns

PROMPT = "What is in the image?"
KEEPS = (1.0, 0.3, 0.1)
NEW_TOKENS = 12
# Multiples of 8 and others; wide, tall, tiny, and scaled down by --max-image-tokens.
SIZES = ((48, 40), (40, 72), (8, 8), (90, 31), (33, 33), (16, 130), (120, 100), (57, 64), (25, 9))
MAX_TOKENS = 160

Messages = list[dict[str, Any]]


class Both:
    """An engine directory at keep 0.3, and its checkpoint in transformers."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        checkpoint = write_qwen_checkpoint(folder / "checkpoint", name)
        output = folder / "engine"
        fixed = {"keep": 0.3, "dtype": "fp32", "output": output, "max_image_tokens": MAX_TOKENS}
        export_model(ExportOptions(model=str(checkpoint), **{**fixed, **options}))
        self.pipeline = Pipeline.from_dir(output, backend="onnxruntime")
        self.reference = QwenReference(checkpoint, MAX_TOKENS)

    def check(self, media: Media, keep: float) -> None:
        """One question about pictures and videos."""
        given = [
            each if isinstance(each, Image.Image) else VideoFrames(tuple(each), fps=FPS)
            for each in media
        ]
        asked = messages_about(given, PROMPT, keys=True)
        self.check_messages(asked, messages_about(media, PROMPT, keys=False), media, keep)

    def check_messages(self, messages: Messages, bare: Messages, media: Media, keep: float) -> None:
        """A conversation, with its pictures and without."""
        expected = self.reference.answer_messages(bare, media, keep, NEW_TOKENS, "original")
        most = max((len(each) for each in media if not isinstance(each, Image.Image)), default=None)
        result = self.pipeline.chat(
            messages, keep=keep, max_new_tokens=NEW_TOKENS, ignore_eos=True, num_frames=most
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


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def frames(count: int, size: tuple[int, int] = (40, 24)) -> tuple[Image.Image, ...]:
    return tuple(noise(size, seed) for seed in range(count))


@pytest.mark.parametrize("name", QWEN_CHECKPOINTS)
def test_pictures_of_every_shape(name: str, both: Callable[..., Both]) -> None:
    for seed, size in enumerate(SIZES):
        for keep in KEEPS:
            both(name).check([noise(size, seed)], keep)


@pytest.mark.parametrize("name", QWEN_CHECKPOINTS)
def test_several_pictures_in_a_prompt(name: str, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name).check([noise((64, 48)), noise((30, 70), 1), noise((24, 24), 2)], keep)


@pytest.mark.parametrize("name", QWEN_CHECKPOINTS)
def test_a_picture_in_the_second_turn(name: str, both: Callable[..., Both]) -> None:
    images = [noise((64, 48)), noise((30, 70), 1)]
    for keep in KEEPS:
        both(name).check(images[:1], keep)  # the first turn, which the cache then holds
        turns = [two_turns(images, PROMPT, keys=keys) for keys in (True, False)]
        both(name).check_messages(*turns, images, keep)


@pytest.mark.parametrize("name", QWEN_CHECKPOINTS)
@pytest.mark.parametrize("count", [2, 6])
def test_videos(name: str, count: int, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name).check([frames(count)], keep)
        both(name).check([noise((40, 56)), frames(count)], keep)


@pytest.mark.parametrize(
    ("name", "target"), [("qwen3-v5", "jetpack6"), ("qwen25-hub", "tensorrt-rtx")]
)
def test_directories_for_tensorrt_answer_the_same_on_onnx_runtime(
    name: str, target: str, both: Callable[..., Both]
) -> None:
    pair = both(name, target=target, verify=False)
    for keep in (1.0, 0.3):
        pair.check([noise((64, 48)), frames(4)], keep)
