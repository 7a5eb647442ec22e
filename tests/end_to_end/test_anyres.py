"""LLaVA-1.6, LLaVA-NeXT-Video and LLaVA-OneVision answer as transformers does.

Token ids and kept indices, at every keep, for pictures of all shapes, several in a prompt, and
videos of different lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from anyres_checkpoints import ANYRES_CHECKPOINTS, write_anyres_checkpoint
from PIL import Image

from divprune.export.export_model import ExportOptions, export_model
from divprune.runtime import Pipeline
from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.families import VideoFrames
from divprune.runtime.reports.bench.benchmark import benchmark
from divprune.runtime.reports.bench.workload import BenchOptions
from tests.end_to_end.anyres_reference import AnyresReference
from tests.end_to_end.reference import Media, messages_about, two_turns
from tests.runtime.families.anyres_cases import SIZES, noise

PROMPT = "What is in the image?"
KEEPS = (1.0, 0.3, 0.1)
NEW_TOKENS = 8

Messages = list[dict[str, Any]]


class Both:
    """An engine directory at keep 0.3, and its checkpoint in transformers."""

    def __init__(self, name: str, folder: Path, **options: Any) -> None:
        checkpoint = write_anyres_checkpoint(folder / "checkpoint", name)
        output = folder / "engine"
        # The export's own check, which takes longest, once for each family.
        verify = ANYRES_CHECKPOINTS[name].layout == "hub"
        fixed = {"keep": 0.3, "dtype": "fp32", "verify": verify, "output": output}
        export_model(ExportOptions(model=str(checkpoint), **{**fixed, **options}))
        self.output = output
        self.pipeline = Pipeline.from_dir(output, backend="onnxruntime")
        self.reference = AnyresReference(checkpoint)

    def check(self, media: Media, keep: float, positions: str = "contiguous") -> None:
        """One question about pictures and videos."""
        given = [each if isinstance(each, Image.Image) else _video(each) for each in media]
        asked = messages_about(given, PROMPT, keys=True)
        bare = messages_about(media, PROMPT, keys=False)
        self.check_messages(asked, bare, media, keep, positions)

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
        most = max((len(each) for each in media if not isinstance(each, Image.Image)), default=None)
        result = self.pipeline.chat(
            messages, keep=keep, max_new_tokens=NEW_TOKENS, ignore_eos=True, num_frames=most
        ).result
        assert [image.num_image_tokens for image in result.images] == expected.num_tokens
        assert [list(image.kept_indices) for image in result.images] == expected.kept
        assert list(result.token_ids) == expected.token_ids


def _video(frames: Sequence[Image.Image]) -> VideoFrames:
    return VideoFrames(tuple(frames), fps=None)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Both]:
    made: dict[tuple[Any, ...], Both] = {}

    def get(name: str, **options: Any) -> Both:
        key = name, *sorted(options.items())
        if key not in made:
            made[key] = Both(name, tmp_path_factory.mktemp(name), **options)
        return made[key]

    return get


@pytest.mark.parametrize("name", ANYRES_CHECKPOINTS)
def test_pictures_of_every_shape(name: str, both: Callable[..., Both]) -> None:
    for seed, size in enumerate(SIZES.values()):
        for keep in KEEPS:
            both(name).check([noise(size, seed)], keep)


@pytest.mark.parametrize("name", ANYRES_CHECKPOINTS)
@pytest.mark.parametrize("keep", KEEPS)
def test_two_pictures_in_a_prompt(name: str, keep: float, both: Callable[..., Both]) -> None:
    both(name).check([noise((64, 48)), noise((30, 70), 1)], keep)


@pytest.mark.parametrize("name", ANYRES_CHECKPOINTS)
def test_a_picture_in_the_second_turn(name: str, both: Callable[..., Both]) -> None:
    """OneVision cuts a picture otherwise once there are two: nothing of the first turn stays."""
    images = [noise((64, 48)), noise((30, 70), 1)]
    for keep in KEEPS:
        both(name).check(images[:1], keep)  # the first turn, which the cache then holds
        turns = [two_turns(images, PROMPT, keys=keys) for keys in (True, False)]
        both(name).check_messages(*turns, images, keep)


@pytest.mark.parametrize("name", [name for name in ANYRES_CHECKPOINTS if "next-video" in name])
@pytest.mark.parametrize("count", [1, 6, 16])
def test_videos_of_llava_next_video(name: str, count: int, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name).check([_frames(count)], keep)


@pytest.mark.parametrize("name", [name for name in ANYRES_CHECKPOINTS if "onevision" in name])
@pytest.mark.parametrize("count", [1, 6, 16])
def test_videos_of_onevision(name: str, count: int, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name, max_image_tokens=150).check([_frames(count)], keep)


@pytest.mark.parametrize("name", ["next-video-llama-hub", "onevision-qwen2-hub"])
def test_a_picture_and_a_video_in_a_prompt(name: str, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name).check([noise((64, 48)), _frames(6)], keep)


@pytest.mark.parametrize("name", ["next-llama-hub", "next-video-llama-hub", "onevision-qwen2-hub"])
def test_original_positions(name: str, both: Callable[..., Both]) -> None:
    for keep in KEEPS:
        both(name, positions="original").check([noise((64, 48)), noise((9, 70))], keep, "original")


@pytest.mark.parametrize("name", ["next-video-llama-hub", "onevision-qwen2-hub"])
def test_directories_for_jetpack_answer_the_same_on_onnx_runtime(
    name: str, both: Callable[..., Both]
) -> None:
    pair = both(name, target="jetpack6", verify=False)
    for keep in (1.0, 0.3):
        pair.check([noise((64, 48)), _frames(2)], keep)


def _frames(count: int) -> tuple[Image.Image, ...]:
    return tuple(noise((40, 30), seed) for seed in range(count))


def test_benchmark_counts_the_tokens_of_the_picture_at_hand(both: Callable[..., Both]) -> None:
    directory = EngineDirectory.open(both("next-llama-hub").output)
    options = BenchOptions(max_new_tokens=2, warmup=0, iters=1, probe=False)
    picture = noise(min(SIZES.values()), 0)
    report = benchmark(directory, options, picture, "noise")
    result = both("next-llama-hub").pipeline.generate(picture, PROMPT, max_new_tokens=1).result
    total = report.engine.num_image_tokens
    assert total == result.images[0].num_image_tokens
    assert total < directory.manifest.selector.num_image_tokens
    assert [run.num_kept for run in report.runs] == [total, result.images[0].num_kept]
