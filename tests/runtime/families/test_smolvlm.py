"""SmolVLM: pixels, prompts, sampled frames and token maps, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from divprune.runtime.errors import CheckpointError, OptionError, UnsupportedError
from divprune.runtime.families import VideoFrames, family_class
from divprune.runtime.families._smolvlm_video import VideoSampling, number_in_words
from divprune.runtime.families.smolvlm import SmolVLM
from tests.runtime.families.processors import (
    SIZES,
    centres,
    expanded_ids,
    gradient,
    picture,
    processor,
    smolvlm_tokenizer,
    transformers_tokenizer,
)

FACTS = {"crop_size": 16, "crop_side": 2, "video_template": "", "image_token": "<image>"}
PREPROCESSOR = {
    "image_processor_type": "SmolVLMImageProcessor",
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "max_image_size": {"longest_edge": 16},
    "resample": 1,
    "rescale_factor": 1 / 255,
    "size": {"longest_edge": 64},
    "video_sampling": {"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 16}},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "four": {},
    "not a multiple": {"size": {"longest_edge": 50}},
    "unsplit": {"do_image_splitting": False},
    "one crop": {"size": {"longest_edge": 16}},
}


def family(max_image_tokens: int | None = None, **changes: Any) -> SmolVLM:
    return SmolVLM.from_facts(FACTS, {**PREPROCESSOR, **changes}, max_image_tokens)


def image_processor(**changes: Any) -> Any:
    pytest.importorskip("transformers")
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    content = {**PREPROCESSOR, **changes}
    for key in ("image_processor_type", "video_sampling"):
        del content[key]
    return SmolVLMImageProcessorPil(**content)


def reference_processor(*, merges_newlines: bool = False, **changes: Any) -> tuple[Any, Any]:
    raw, names = smolvlm_tokenizer(merges_newlines=merges_newlines)
    parts = {"image_processor": image_processor(**changes), "image_seq_len": 4}
    return processor("SmolVLMProcessor", transformers_tokenizer(raw, names), **parts), raw


def video(count: int, fps: float | None) -> VideoFrames:
    return VideoFrames(tuple(picture(30, 20, seed) for seed in range(count)), fps)


def test_the_family_is_found_by_name() -> None:
    assert family_class("smolvlm") is SmolVLM


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_transformers(size: tuple[int, int], name: str) -> None:
    image = picture(*size)
    prepared = family(**CONFIGS[name]).prepare_image(image)
    reference = image_processor(**CONFIGS[name])
    expected = reference([image], return_tensors="np")["pixel_values"][0]
    pixels = prepared.inputs["pixel_values"]
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected, atol=1e-6)
    assert prepared.num_tokens == family(**CONFIGS[name]).count_tokens(*size) == 4 * len(pixels)
    assert prepared.note is None


def test_a_real_crop_size_is_prepared_as_transformers_does() -> None:
    facts = {**FACTS, "crop_size": 384, "crop_side": 9}
    changes = {"max_image_size": {"longest_edge": 384}, "size": {"longest_edge": 1536}}
    image = picture(500, 375)
    prepared = SmolVLM.from_facts(facts, {**PREPROCESSOR, **changes}, None).prepare_image(image)
    expected = image_processor(**changes)([image], return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(prepared.inputs["pixel_values"], expected, atol=1e-6)
    assert prepared.num_tokens == 1053


@pytest.mark.parametrize("merges_newlines", [False, True])
@pytest.mark.parametrize("sizes", [[(40, 30)], [(30, 40), (100, 20)], [(16, 16)]])
@pytest.mark.parametrize("name", CONFIGS)
def test_prompt_ids_equal_those_of_the_processor(
    name: str, sizes: list[tuple[int, int]], merges_newlines: bool
) -> None:
    pytest.importorskip("transformers")
    reference, raw = reference_processor(merges_newlines=merges_newlines, **CONFIGS[name])
    text = "<|im_start|>User:" + "<image>" * len(sizes) + "\nWhat is it?<end_of_utterance>\n"
    images = [picture(*size) for size in sizes]
    expected = reference(images=[images], text=[text])["input_ids"][0]
    media = [family(**CONFIGS[name]).prepare_image(image, len(images)) for image in images]
    assert expanded_ids(text, "<image>", "<image>", raw, media) == expected


@pytest.mark.parametrize(
    ("count", "fps", "num_frames"), [(5, 0.9, None), (90, 10.0, None), (40, 30.0, 3), (4, 0.01, 9)]
)
def test_video_text_equals_that_of_the_processor(
    count: int, fps: float, num_frames: int | None
) -> None:
    pytest.importorskip("num2words", reason="transformers spells the number of frames with it")
    from transformers.video_utils import VideoMetadata

    prepared = family().prepare_video(video(count, fps), num_frames)
    sampling = VideoSampling.from_config(PREPROCESSOR, asked=num_frames is not None)
    indices = sampling.choose(count, fps, num_frames)
    metadata = VideoMetadata(count, fps, duration=count / fps, frames_indices=indices)
    inputs = {"pixel_values": np.zeros((1, len(indices))), "video_metadata": [metadata]}
    reference, raw = reference_processor()
    expected = raw.encode(reference.replace_video_token(inputs, 0)).ids
    assert expanded_ids("<video>", "<video>", "<image>", raw, [prepared]) == expected
    assert prepared.runs == (4,) * len(indices)


@pytest.mark.parametrize(
    ("total", "fps", "expected"),
    [  # what transformers 5.23 samples, whose video processor needs torchvision
        (1, 30.0, [0]),
        (5, 2.0, [0, 4]),
        (40, 30.0, [0]),
        (100, 30.0, [0, 49, 99]),
        (110, 10.0, [10, 22, 35, 48, 61, 74, 87, 100]),
        (320, 30.0, [30, 67, 104, 141, 178, 215, 252, 290]),
        (30, 0.5, [0, 4, 8, 12, 16, 20, 24, 29]),
        (9, 1.0, [0, 1, 2, 3, 4, 5, 6, 8]),
    ],
)
def test_sampled_frames_are_those_of_transformers(
    total: int, fps: float, expected: list[int]
) -> None:
    sampling = VideoSampling.from_config(PREPROCESSOR, asked=False)
    assert sampling.choose(total, fps, None) == expected


def test_frames_are_squeezed_to_one_crop_each() -> None:
    frames = video(3, 1.0)
    prepared = family().prepare_video(frames)
    reference = image_processor(do_image_splitting=False, size={"longest_edge": 16})
    expected = [
        reference([frame], return_tensors="np")["pixel_values"][0] for frame in frames.frames
    ]
    np.testing.assert_allclose(prepared.inputs["pixel_values"], np.concatenate(expected), atol=1e-6)


def test_frames_without_times_need_the_frames_a_second() -> None:
    with pytest.raises(OptionError, match="--fps"):
        family().prepare_video(video(3, None))


def test_more_frames_than_the_graph_takes_are_refused_where_they_were_asked_for() -> None:
    small = family(20)
    with pytest.raises(UnsupportedError, match=r"(?s)at most 5.*--max-image-tokens 24"):
        small.prepare_video(video(8, 1.0), num_frames=6)
    prepared = small.prepare_video(video(8, 1.0))
    assert len(prepared.runs) == 5
    assert prepared.note is not None
    assert "5 frames instead of 8" in prepared.note


def test_a_checkpoint_that_does_not_say_how_to_sample_needs_the_number_of_frames() -> None:
    silent = family(video_sampling=None)
    with pytest.raises(CheckpointError, match=r"(?s)video_sampling.*--num-frames"):
        silent.prepare_video(video(4, 1.0))
    assert len(silent.prepare_video(video(4, 1.0), num_frames=2).runs) == 2


def test_newer_files_say_the_sampling_in_the_video_processor() -> None:
    newer = family(video_sampling=None, video_processor={"fps": 2, "num_frames": 3})
    assert len(newer.prepare_video(video(9, 1.0)).runs) == 3


def test_a_model_without_videos_says_so() -> None:
    still = SmolVLM.from_facts({**FACTS, "video_template": None}, PREPROCESSOR, None)
    assert set(still.placeholders) == {"image"}
    with pytest.raises(UnsupportedError, match="takes no videos"):
        still.prepare_video(video(2, 1.0))


@pytest.mark.parametrize("limit", [4, 19, 20, 39, 40, 60])
@pytest.mark.parametrize("size", SIZES)
def test_fewer_tokens_mean_a_shorter_longest_edge(size: tuple[int, int], limit: int) -> None:
    small = family(limit)
    prepared = small.prepare_image(picture(*size))
    assert prepared.num_tokens == small.count_tokens(*size) <= limit
    assert prepared.num_tokens <= small.dims()["tokens"].maximum
    full = family().count_tokens(*size)
    assert (prepared.note is None) == (prepared.num_tokens == full)


def test_a_limit_below_one_crop_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="--max-image-tokens 4"):
        family(3)


def test_tokens_lie_where_their_pixels_are() -> None:
    prepared = family().prepare_image(gradient(96, 48))
    places = prepared.token_map()
    assert places.panel_names == ("tiles", "whole")
    assert places.panels.tolist() == [0] * (prepared.num_tokens - 4) + [1] * 4
    seen = centres(prepared.inputs["pixel_values"] / 2 + 0.5, side=2)
    boxes = (places.boxes[:, :2] + places.boxes[:, 2:]) / 2 / [96, 48]
    np.testing.assert_allclose(seen, boxes, atol=0.02)


def test_an_unsplit_picture_is_the_whole_alone() -> None:
    places = family(do_image_splitting=False).prepare_image(picture(40, 30)).token_map()
    assert places.panel_names == ("whole",)
    np.testing.assert_allclose(places.boxes[-1], [20, 15, 40, 30])


def test_frames_are_the_panels_of_a_video() -> None:
    places = family().prepare_video(video(2, 1.0)).token_map()
    assert places.panel_names == ("frame 1", "frame 2")
    np.testing.assert_array_equal(places.panels, [0] * 4 + [1] * 4)


@pytest.mark.parametrize("key", ["image_mean", "size", "max_image_size", "do_image_splitting"])
def test_a_missing_option_is_an_error(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not say {key}"):
        family(**{key: None})


def test_a_processor_of_another_size_than_the_tower_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit the vision tower"):
        family(max_image_size={"longest_edge": 24})


def test_numbers_are_spelled_as_transformers_spells_them() -> None:
    num2words = pytest.importorskip("num2words").num2words
    for number in [*range(1200), 12345, 20000, 100000, 101100, 999999]:
        assert number_in_words(number) == num2words(number)
