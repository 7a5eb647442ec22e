"""InternVL: pixels, prompts, sampled frames and token maps, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from divprune.runtime.errors import CheckpointError, UnsupportedError
from divprune.runtime.families import VideoFrames, family_class
from divprune.runtime.families.internvl import InternVL, sample_frames
from tests.runtime.families.processors import (
    SIZES,
    centres,
    expanded_ids,
    gradient,
    internvl_tokenizer,
    picture,
    processor,
    transformers_tokenizer,
)

FACTS = {"tile_size": 16, "tile_side": 2, "image_token": "<IMG_CONTEXT>"}
PREPROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "crop_to_patches": False,  # as the hub's file has it; the processor cuts all the same
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 16, "width": 16},
}


def family(max_image_tokens: int | None = None, **changes: Any) -> InternVL:
    return InternVL.from_facts(FACTS, {**PREPROCESSOR, **changes}, max_image_tokens)


def image_processor(**changes: Any) -> Any:
    pytest.importorskip("transformers")
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    content = {**PREPROCESSOR, "crop_to_patches": True, **changes}
    del content["image_processor_type"]
    return GotOcr2ImageProcessorPil(**content)


def test_the_family_is_found_by_name() -> None:
    assert family_class("internvl") is InternVL


@pytest.mark.parametrize("max_image_tokens", [None, 20])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_transformers(
    size: tuple[int, int], max_image_tokens: int | None
) -> None:
    intern = family(max_image_tokens)
    image = picture(*size)
    prepared = intern.prepare_image(image)
    reference = image_processor(max_patches=intern.max_tiles)
    expected = reference([image], input_data_format="channels_last", return_tensors="np")
    pixels = prepared.inputs["pixel_values"]
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, expected["pixel_values"], atol=1e-6)
    assert prepared.num_tokens == intern.count_tokens(*size) == 4 * len(pixels)
    assert prepared.num_tokens <= intern.dims()["tokens"].maximum


def test_transparency_is_laid_onto_white() -> None:
    image = picture(40, 30).convert("RGBA")
    image.putalpha(100)
    expected = image_processor()([image], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(family().prepare_image(image).inputs["pixel_values"], expected)


@pytest.mark.parametrize("tile_size", [16, 448])
def test_the_number_of_tiles_is_that_of_transformers_for_any_size(tile_size: int) -> None:
    size = {"height": tile_size, "width": tile_size}
    facts = {**FACTS, "tile_size": tile_size}
    intern = InternVL.from_facts(facts, {**PREPROCESSOR, "size": size}, None)
    reference = image_processor(size=size)
    rng = np.random.default_rng(1)
    for width, height in rng.integers(1, 3 * tile_size, (300, 2)).tolist():
        tiles = reference.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        assert intern.count_tokens(width, height) == 4 * tiles, (width, height)


def test_known_pictures_have_the_known_number_of_tokens() -> None:
    size = {"height": 448, "width": 448}
    facts = {**FACTS, "tile_size": 448, "tile_side": 16}
    intern = InternVL.from_facts(facts, {**PREPROCESSOR, "size": size}, None)
    counts = [intern.count_tokens(*s) for s in [(640, 480), (1280, 720), (1000, 1000), (336, 336)]]
    assert counts == [3328, 2304, 2560, 256]
    assert intern.dims()["tokens"].maximum == 3328


@pytest.mark.parametrize("sizes", [[(40, 30)], [(16, 16), (100, 20)]])
def test_prompt_ids_equal_those_of_the_processor(sizes: list[tuple[int, int]]) -> None:
    pytest.importorskip("transformers")
    raw, names = internvl_tokenizer()
    text = "<|im_start|>user\n" + "<IMG_CONTEXT>\n" * len(sizes) + "What is it?<|im_end|>\n"
    images = [picture(*size) for size in sizes]
    reference = processor(
        "InternVLProcessor",
        transformers_tokenizer(raw, names),
        image_processor=image_processor(),
        image_seq_length=4,
    )
    expected = reference(images=images, text=text)["input_ids"][0]
    media = [family().prepare_image(image, len(images)) for image in images]
    assert expanded_ids(text, "<IMG_CONTEXT>", "<IMG_CONTEXT>", raw, media) == expected


def test_video_text_equals_that_of_the_processor() -> None:
    pytest.importorskip("transformers")
    raw, names = internvl_tokenizer()
    frames = VideoFrames(tuple(picture(30, 20, seed) for seed in range(5)), fps=None)
    prepared = family().prepare_video(frames, num_frames=3)
    reference = processor(
        "InternVLProcessor", transformers_tokenizer(raw, names), image_seq_length=4
    )
    text = reference.replace_video_token({"pixel_values_videos": [np.zeros((3, 1))]}, 0)
    expected = raw.encode(text, add_special_tokens=False).ids
    assert expanded_ids("<video>", "<video>", "<IMG_CONTEXT>", raw, [prepared]) == expected
    assert prepared.runs == (4, 4, 4)
    assert prepared.num_tokens == 12


def test_frames_of_a_video_are_prepared_as_single_tiles() -> None:
    frames = tuple(picture(30, 20, seed) for seed in range(5))
    prepared = family().prepare_video(VideoFrames(frames, fps=2.0), num_frames=2)
    expected = [family(4).prepare_image(frames[index]).inputs["pixel_values"] for index in (1, 3)]
    np.testing.assert_array_equal(prepared.inputs["pixel_values"], np.concatenate(expected))


def test_sampled_frames_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    for total in range(1, 130):
        for count in range(1, min(total, 40) + 1):
            step = total / count
            expected = torch.arange(step / 2, total, step).int().tolist()
            assert sample_frames(total, count) == expected, (total, count)


def test_a_short_video_is_taken_whole() -> None:
    frames = VideoFrames(tuple(picture(30, 20, seed) for seed in range(5)), fps=None)
    assert len(family().prepare_video(frames).runs) == 5
    assert len(family().prepare_video(frames, num_frames=9).runs) == 5


def test_more_frames_than_the_graph_takes_are_refused_with_the_way_out() -> None:
    frames = VideoFrames(tuple(picture(30, 20, seed) for seed in range(15)), fps=None)
    with pytest.raises(UnsupportedError, match=r"(?s)at most 13.*--max-image-tokens 60"):
        family().prepare_video(frames, num_frames=15)
    assert len(family(60).prepare_video(frames, num_frames=15).runs) == 15


def test_fewer_tokens_mean_fewer_tiles_and_the_result_says_so() -> None:
    prepared = family(20).prepare_image(picture(40, 30))
    assert prepared.num_tokens == 20
    assert prepared.note is not None
    assert "4 tiles instead of 12" in prepared.note
    assert family(20).prepare_image(picture(16, 16)).note is None


def test_a_limit_below_one_tile_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="--max-image-tokens 4"):
        family(3)


def test_tokens_lie_where_their_pixels_are() -> None:
    plain = family(image_mean=[0.0] * 3, image_std=[1.0] * 3)
    prepared = plain.prepare_image(gradient(96, 48))
    places = prepared.token_map()
    assert places.panel_names == ("tiles", "whole")
    assert len(places.boxes) == len(places.panels) == prepared.num_tokens
    assert places.panels.tolist() == [0] * (prepared.num_tokens - 4) + [1] * 4
    seen = centres(prepared.inputs["pixel_values"], side=2)
    boxes = (places.boxes[:, :2] + places.boxes[:, 2:]) / 2 / [96, 48]
    np.testing.assert_allclose(seen, boxes, atol=0.02)


def test_a_single_tile_is_the_whole_picture() -> None:
    assert family().prepare_image(picture(16, 16)).token_map().panel_names == ("whole",)


def test_frames_are_the_panels_of_a_video() -> None:
    frames = VideoFrames(tuple(picture(30, 20, seed) for seed in range(2)), fps=None)
    places = family().prepare_video(frames).token_map()
    assert places.panel_names == ("frame 1", "frame 2")
    np.testing.assert_array_equal(places.panels, [0] * 4 + [1] * 4)
    np.testing.assert_allclose(places.boxes[4], [0, 0, 15, 10])


def test_positions_follow_one_another() -> None:
    positions, following = family().positions(np.array([False, True, True]), [])
    np.testing.assert_array_equal(positions, [[0, 1, 2]])
    assert following == 3


@pytest.mark.parametrize("key", ["image_mean", "image_std", "size", "resample", "max_patches"])
def test_a_missing_option_is_an_error(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"does not say {key}"):
        family(**{key: None})


def test_a_processor_of_another_size_than_the_tower_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not fit the vision tower"):
        family(size={"height": 24, "width": 24})


@pytest.mark.parametrize(
    "changes", [{"do_normalize": False}, {"image_std": [0, 1, 1]}, {"min_patches": 13}]
)
def test_options_that_cannot_be_carried_out_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(changes))):
        family(**changes)


def test_the_video_processor_counts_for_videos_only() -> None:
    other = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    intern = family(video_processor={**other, "size": None})
    frames = VideoFrames((picture(16, 16),), fps=None)
    pixels = intern.prepare_video(frames).inputs["pixel_values"]
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert intern.prepare_image(picture(16, 16)).inputs["pixel_values"].min() < -1
    wrong = family(video_processor={"size": {"height": 24, "width": 24}})
    with pytest.raises(CheckpointError, match="24"):
        wrong.prepare_video(frames)
