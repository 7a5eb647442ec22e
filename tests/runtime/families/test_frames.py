"""Frames of videos: sampling, pooling as transformers pools, and what a directory has room for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from transformers import CLIPVisionConfig, LlavaNextVideoConfig
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from divprune.runtime.errors import OptionError, UnsupportedError
from divprune.runtime.families._frames import FramesFamily, sample_frames
from divprune.runtime.families.llava_next import LlavaNext
from divprune.runtime.families.llava_next_video import LlavaNextVideo
from divprune.runtime.families.llava_onevision import LlavaOnevision
from divprune.runtime.families.protocol import VideoFrames
from tests.runtime.families.anyres_cases import (
    NEXT_FACTS,
    NEXT_PROCESSOR,
    NEXT_VIDEO_FACTS,
    ONEVISION_FACTS,
    ONEVISION_PROCESSOR,
    noise,
)


def video(count: int, size: tuple[int, int] = (30, 20)) -> VideoFrames:
    return VideoFrames(tuple(noise(size, seed) for seed in range(count)), fps=None)


def next_video(limit: int | None = None, **changes: Any) -> FramesFamily:
    facts = {**NEXT_VIDEO_FACTS, **changes}
    size = facts["image_size"]
    pinpoints = [[size, 2 * size], [2 * size, size]]
    square = {"height": size, "width": size}
    config = {**NEXT_PROCESSOR, "image_grid_pinpoints": pinpoints}
    config |= {"size": {"shortest_edge": size}, "crop_size": square}
    family = LlavaNextVideo.from_facts({**facts, "pinpoints": pinpoints}, config, limit)
    assert isinstance(family, FramesFamily)
    return family


def onevision(limit: int | None = None) -> FramesFamily:
    family = LlavaOnevision.from_facts(ONEVISION_FACTS, ONEVISION_PROCESSOR, limit)
    assert isinstance(family, FramesFamily)
    return family


@pytest.mark.parametrize("total, count", [(8, 4), (100, 8), (9, 8), (31, 6), (1, 1), (1000, 7)])
def test_frames_are_taken_evenly_from_the_first_on(total: int, count: int) -> None:
    expected = np.arange(0, total, total / count).astype(int)[:count]
    assert sample_frames(total, count) == expected.tolist()
    assert len(expected) == count


@pytest.mark.parametrize("total", [1, 5, 8])
def test_a_video_of_no_more_frames_than_asked_for_is_taken_whole(total: int) -> None:
    assert sample_frames(total, 8) == list(range(total))


@pytest.mark.parametrize("side, count", [(16, 8), (20, 3), (16, 1)])  # 5 x 5 patches: one is left
def test_next_video_pools_as_transformers_does(side: int, count: int) -> None:
    prepared = next_video(image_size=side).prepare_video(video(count), 8)
    patches = (side // 4) ** 2
    tower = CLIPVisionConfig(image_size=side, patch_size=4)
    features = torch.randn(count, patches, 8)
    expected = LlavaNextVideoPooler(LlavaNextVideoConfig(vision_config=tower))(features)
    rows = torch.from_numpy(prepared.inputs["token_rows"])
    weights = torch.from_numpy(prepared.inputs["token_weights"])
    pooled = (features.flatten(0, 1)[rows] * weights[..., None]).sum(dim=1)
    torch.testing.assert_close(pooled, expected.flatten(0, 1), rtol=0, atol=1e-6)
    assert prepared.num_tokens == count * (side // 8) ** 2 == sum(prepared.runs)
    assert prepared.text == "<video>"


@pytest.mark.parametrize("count", [1, 6])
def test_onevision_interpolates_frames_as_transformers_does(count: int) -> None:
    prepared = onevision().prepare_video(video(count), 6)
    features, newline = torch.randn(count, 25, 8), torch.randn(1, 8)

    class Holder:
        class config:
            vision_config = CLIPVisionConfig(image_size=20, patch_size=4)

    pooled = LlavaOnevisionModel.apply_pooling(Holder(), features)
    expected = torch.cat([pooled.flatten(0, 1), newline])
    rows = torch.from_numpy(prepared.inputs["token_rows"])
    weights = torch.from_numpy(prepared.inputs["token_weights"])
    everything = torch.cat([features.flatten(0, 1), newline])
    packed = (everything[rows] * weights[..., None]).sum(dim=1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=3e-6)
    assert prepared.num_tokens == 9 * count + 1


def test_every_frame_has_the_pixels_of_a_picture_that_is_not_cut() -> None:
    frames = video(3)
    prepared = next_video().prepare_video(frames, 3)
    processor = next_video().processors.frame
    pixels = np.concatenate([processor(frame) for frame in frames.frames])
    np.testing.assert_array_equal(prepared.inputs["pixel_values"], pixels)


def test_sampled_frames_come_in_the_order_of_time() -> None:
    frames = video(10)
    some = next_video().prepare_video(frames, 5).inputs["pixel_values"]
    every = next_video(limit=100).prepare_video(frames, 10).inputs["pixel_values"]
    np.testing.assert_array_equal(some, every[::2])


@pytest.mark.parametrize("make", [next_video, onevision])
@pytest.mark.parametrize("count", [1, 4, 16])
def test_videos_lie_within_the_ranges(make: Any, count: int) -> None:
    family = make(limit=200)
    prepared = family.prepare_video(video(count), count)
    dims = family.dims()
    assert dims["crops"].minimum <= count <= dims["crops"].maximum
    assert dims["tokens"].minimum <= prepared.num_tokens <= dims["tokens"].maximum <= 200


def test_a_limit_makes_room_for_64_frames() -> None:
    family = next_video(limit=64 * 4)
    assert family.max_frames == 64
    assert family.dims()["crops"].maximum == 64


def test_more_frames_than_there_is_room_for_are_refused() -> None:
    family = next_video()
    with pytest.raises(OptionError, match=f"from 1 to {family.max_frames}"):
        family.prepare_video(video(2), family.max_frames + 1)
    with pytest.raises(OptionError, match="--num-frames from 1"):
        family.prepare_video(video(2), 0)


@pytest.mark.parametrize("make", [next_video, onevision])
def test_the_token_map_has_a_panel_a_frame(make: Any) -> None:
    prepared = make().prepare_video(video(3, size=(40, 20)), 3)
    token_map = prepared.token_map()
    assert token_map.panel_names == ("frame 0", "frame 1", "frame 2")
    assert len(token_map.boxes) == len(token_map.panels) == prepared.num_tokens
    first = token_map.boxes[token_map.panels == 0]
    # next-video crops the middle of a frame, onevision squeezes all of it.
    left, right = (10, 30) if make is next_video else (0, 40)
    assert [*first[:, :2].min(axis=0), *first[:, 2:].max(axis=0)] == [left, 0, right, 20]


def test_a_family_for_pictures_refuses_a_video() -> None:
    family = LlavaNext.from_facts(NEXT_FACTS, NEXT_PROCESSOR, None)
    assert isinstance(family, LlavaNext)
    with pytest.raises(UnsupportedError, match="takes no videos"):
        family.prepare_video(video(2))
