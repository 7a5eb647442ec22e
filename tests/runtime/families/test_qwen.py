"""Qwen's families at run time against transformers: pixels, grids, windows, positions."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers
from PIL import Image
from transformers import vision_utils
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl

from divprune.runtime.errors import CheckpointError, ImageError, UnsupportedError
from divprune.runtime.families import VideoFrames, family_class
from divprune.runtime.families._qwen_vision import QwenVision

SIZES = (
    (640, 480),
    (480, 640),
    (64, 64),
    (33, 31),
    (1, 1),
    (97, 401),
    (1000, 40),
    (350, 1033),
    (1280, 720),
    (224, 224),
)
NAMES = ("qwen3_vl", "qwen2_5_vl", "qwen2_vl")


def preprocessor(name: str, **changes: Any) -> dict[str, Any]:
    patch = 16 if name == "qwen3_vl" else 14
    kind = "Qwen3VL" if name == "qwen3_vl" else "Qwen2VL"
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3} if patch == 16 else {}
    common = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, **statistics}
    area = {"shortest_edge": 4096, "longest_edge": 300_000}
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "size": area, **common}
    video = {
        "video_processor_type": f"{kind}VideoProcessor",
        "size": {"shortest_edge": 4096, "longest_edge": 400_000},
        **common,
    }
    return {**image, **changes, "video_processor": video}


def facts(name: str) -> dict[str, Any]:
    frequencies = (1.0 / 10000.0 ** (torch.arange(0, 16, 2, dtype=torch.float) / 16)).tolist()
    return {
        "patch_size": 16 if name == "qwen3_vl" else 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "rotary_frequencies": frequencies,
        "max_frame_steps": 8,
        "position_side": 7,
        "window_side": 4,
        "tokens_per_second": 2,
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }


def family(name: str, max_tokens: int | None = None, **changes: Any) -> QwenVision:
    found: Any = family_class(name).from_facts(
        facts(name), preprocessor(name, **changes), max_tokens
    )
    return found


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def reference(name: str, image: Image.Image) -> Mapping[str, Any]:
    config = preprocessor(name)
    config.pop("video_processor")
    config.pop("image_processor_type")
    processor = image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(**config)
    found: Mapping[str, Any] = processor(image, return_tensors="np")
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_patch_rows_are_those_of_transformers(name: str, size: tuple[int, int]) -> None:
    image, qwen = picture(*size), family(name)
    expected = reference(name, image)
    prepared = qwen.prepare_image(image)
    rows = prepared.inputs["pixel_values"]
    assert rows.shape[0] == 1
    np.testing.assert_array_equal(
        rows.reshape(expected["pixel_values"].shape), expected["pixel_values"]
    )
    _, height, width = expected["image_grid_thw"][0]
    assert prepared.grid == (1, height // 2, width // 2)
    assert prepared.num_tokens == qwen.count_tokens(*size) == height * width // 4
    assert prepared.runs == (prepared.num_tokens,)
    assert prepared.note is None


@pytest.mark.parametrize("size", SIZES)
def test_grid_inputs_are_those_of_transformers(size: tuple[int, int]) -> None:
    prepared = family("qwen3_vl").prepare_image(picture(*size))
    assert prepared.grid is not None
    grid = torch.tensor([[1, 2 * prepared.grid[1], 2 * prepared.grid[2]]])
    taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=7, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    np.testing.assert_array_equal(prepared.inputs["position_rows"].reshape(-1, 4), taps)
    np.testing.assert_array_equal(prepared.inputs["position_weights"].reshape(-1, 4), weights)
    places = vision_utils.get_vision_position_ids(grid, 2).float()
    angles = places[..., None] * torch.tensor(facts("qwen3_vl")["rotary_frequencies"])
    found = prepared.inputs["rotary_angles"]
    np.testing.assert_array_equal(found.reshape(-1, 16), angles.reshape(-1, 16))


@pytest.mark.parametrize("size", SIZES)
def test_windows_hold_the_patches_that_transformers_puts_together(size: tuple[int, int]) -> None:
    qwen = family("qwen2_5_vl")
    prepared = qwen.prepare_image(picture(*size))
    assert prepared.grid is not None
    grid = torch.tensor([[1, 2 * prepared.grid[1], 2 * prepared.grid[2]]])
    order, ends = vision_utils.get_vision_window_index(grid, 2, 112, 14)
    patches = (order[:, None] * 4 + torch.arange(4)).reshape(-1).numpy()
    expected = [sorted(patches[a:b]) for a, b in itertools.pairwise(ends)]
    rows, mask = prepared.inputs["window_rows"], prepared.inputs["window_mask"]
    assert rows.shape[1] == 64
    found = [sorted(row[kept == 0]) for row, kept in zip(rows, mask, strict=True)]
    assert found == expected
    slots = prepared.inputs["window_slots"].reshape(-1)
    np.testing.assert_array_equal(rows.reshape(-1)[slots], np.arange(len(slots)))
    assert (mask.reshape(-1)[slots] == 0).all()
    windows = qwen.dims()["windows"]
    assert windows.minimum <= len(rows) <= windows.maximum


def positions_of_transformers(
    name: str, is_visual: list[int], grids: dict[str, list[Any]], seconds: list[float]
) -> tuple[np.ndarray, int]:
    """``get_rope_index`` for a prompt with 0 for text, 1 for pictures and 2 for videos."""
    config = transformers.AutoConfig.for_model(name)
    if name == "qwen2_5_vl":
        config.vision_config.tokens_per_second = 2
    kind: Any = {
        "qwen3_vl": transformers.Qwen3VLModel,
        "qwen2_5_vl": transformers.Qwen2_5_VLModel,
        "qwen2_vl": transformers.Qwen2VLModel,
    }[name]
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.config = config
    kinds = torch.tensor([is_visual], dtype=torch.int32)
    tensors = {key: torch.tensor(value) for key, value in grids.items()}
    if name == "qwen2_5_vl" and seconds:
        tensors["second_per_grid_ts"] = torch.tensor(seconds)
    found, delta = model.get_rope_index(torch.zeros_like(kinds).long(), kinds, **tensors)
    return found[:, 0].numpy(), int(delta) + len(is_visual)


def rows_of(media: list[Any], texts: list[int]) -> list[int]:
    """The rows of a prompt: text, a picture or video, text, and so on."""
    rows: list[int] = []
    for text, each in zip(texts, media, strict=False):
        rows += [0] * text
        for index, run in enumerate(each.runs):
            rows += [0] * (5 if index else 0) + [2 if each.kind == "video" else 1] * run
    return rows + [0] * texts[-1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("texts", [[3, 1, 4, 2], [1, 1, 1, 0], [7, 30, 2, 9]])
def test_positions_are_those_of_transformers(name: str, texts: list[int]) -> None:
    qwen = family(name)
    frames = tuple(picture(120, 90, seed) for seed in range(9))
    media = [
        qwen.prepare_image(picture(300, 100)),
        qwen.prepare_video(VideoFrames(frames, fps=1.7), num_frames=5),
        qwen.prepare_image(picture(60, 200)),
    ]
    rows = rows_of(media, texts)
    full = {
        kind: [[m.grid[0], 2 * m.grid[1], 2 * m.grid[2]] for m in media if m.kind == kind]
        for kind in ("image", "video")
    }
    grids = {f"{kind}_grid_thw": value for kind, value in full.items()}
    sampled = len(qwen.sample(9, 1.7, 5, 16)) / 9 * 1.7
    expected, end = positions_of_transformers(name, rows, grids, [2 / sampled])
    found, after = qwen.positions(np.array(rows) > 0, media)
    np.testing.assert_array_equal(found, expected)
    assert after == end
    text_alone, count = qwen.positions(np.zeros(4, bool), [])
    np.testing.assert_array_equal(text_alone, np.tile(np.arange(4), (3, 1)))
    assert count == 4


def test_seconds_between_frames_space_out_the_time_of_a_video() -> None:
    qwen = family("qwen2_5_vl")
    frames = tuple(picture(64, 64, seed) for seed in range(20))
    video = qwen.prepare_video(VideoFrames(frames, fps=0.5), num_frames=4)
    found, after = qwen.positions(np.ones(video.num_tokens, bool), [video])
    assert np.unique(found[0]).tolist() == [0, 40]  # 2 frames at 0.1 a second, 2 positions each
    assert after == 41


@pytest.mark.parametrize("total", [1, 2, 5, 9])
@pytest.mark.parametrize("name", NAMES)
def test_frames_of_a_video_are_cut_two_at_a_time(name: str, total: int) -> None:
    qwen = family(name)
    frames = tuple(picture(150, 70, seed) for seed in range(total))
    prepared = qwen.prepare_video(VideoFrames(frames, fps=2.0), num_frames=total)
    taken = [frames[i] for i in qwen.sample(total, 2.0, total, 16)]
    taken += [taken[-1]] * (len(taken) % 2)
    assert prepared.grid is not None
    steps, rows, columns = prepared.grid
    assert steps == len(taken) // 2
    found = prepared.inputs["pixel_values"]
    assert found.shape[:2] == (steps, rows * columns)
    assert sum(prepared.runs) == prepared.num_tokens == steps * rows * columns
    patch, factor = qwen.images.patch, qwen.images.factor
    assert qwen.videos is not None
    pixels = dataclasses.replace(qwen.videos.pixels, resize_to=(rows * factor, columns * factor))
    stack = np.concatenate([pixels(frame) for frame in taken])  # [frames, 3, H, W]
    # transformers' video processors reshape in just this way, but need torchvision to load
    view = stack.reshape(steps, 2, 3, rows, 2, patch, columns, 2, patch)
    expected = view.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(found.shape)
    np.testing.assert_array_equal(found, expected)


def test_every_pair_of_frames_has_its_time_in_the_text() -> None:
    qwen = family("qwen3_vl")
    frames = tuple(picture(64, 64, seed) for seed in range(7))
    prepared = qwen.prepare_video(VideoFrames(frames, fps=4.0), num_frames=3)
    span = "<|vision_start|><|video_pad|><|vision_end|>"
    # frames 0, 3 and 6, the last one twice
    assert prepared.text == f"<0.4 seconds>{span}<1.5 seconds>{span}"
    assert prepared.grid is not None
    assert prepared.runs == (prepared.grid[1] * prepared.grid[2],) * 2


@pytest.mark.parametrize("name", NAMES)
def test_two_frames_a_second_are_taken_where_no_number_is_given(name: str) -> None:
    qwen = family(name)
    assert len(qwen.sample(300, 30.0, None, 100)) == 20
    assert len(qwen.sample(300, 30.0, None, 16)) == 16
    assert len(qwen.sample(30, 30.0, None, 16)) == 4
    assert qwen.sample(4, 1.0, 100, 16) == [0, 1, 2, 3]


def test_a_video_without_times_is_refused_by_the_flag_that_helps() -> None:
    with pytest.raises(UnsupportedError, match="frames a second") as caught:
        family("qwen3_vl").prepare_video(VideoFrames((picture(64, 64),) * 4, fps=None))
    assert "--fps" in str(caught.value.fix)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 3, 5, 16])
def test_videos_stay_within_the_bound(name: str, count: int) -> None:
    qwen = family(name, 40)
    frames = tuple(picture(800, 600, seed) for seed in range(count))
    prepared = qwen.prepare_video(VideoFrames(frames, fps=1.0), num_frames=count)
    assert 0 < prepared.num_tokens <= 40


def test_pictures_beyond_the_bound_are_scaled_down_and_say_so() -> None:
    qwen = family("qwen3_vl", 50)
    prepared = qwen.prepare_image(picture(640, 480))
    assert prepared.num_tokens <= 50
    assert prepared.note is not None
    assert "640 x 480" in prepared.note
    assert qwen.dims()["tokens"].maximum == 50
    assert qwen.prepare_image(picture(100, 100)).note is None


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_within_the_dimensions(name: str) -> None:
    for bound in (17, 200, None):
        qwen = family(name, bound)
        dims = qwen.dims()
        for size in SIZES:
            try:
                prepared = qwen.prepare_image(picture(*size))
            except ImageError:
                assert bound == 17
                continue
            cells = prepared.inputs["pixel_values"].shape[1]
            assert dims["cells"].minimum <= cells <= dims["cells"].maximum
            if "windows" in dims:
                assert len(prepared.inputs["window_rows"]) <= dims["windows"].maximum


def test_an_elongated_picture_is_refused() -> None:
    with pytest.raises(ImageError, match="too elongated"):
        family("qwen3_vl").prepare_image(picture(2000, 9))


def test_boxes_of_tokens_cover_the_picture() -> None:
    prepared = family("qwen3_vl").prepare_image(picture(640, 480))
    boxes = prepared.token_map()
    assert prepared.grid is not None
    _, rows, columns = prepared.grid
    np.testing.assert_allclose(boxes.boxes[0], [0, 0, 640 / columns, 480 / rows], rtol=1e-6)
    np.testing.assert_allclose(boxes.boxes[-1, 2:], [640, 480], rtol=1e-6)
    assert boxes.panel_names == ("whole",)
    frames = tuple(picture(64, 64, seed) for seed in range(6))
    video = family("qwen3_vl").prepare_video(VideoFrames(frames, fps=1.0), num_frames=6)
    panels = video.token_map()
    assert panels.panel_names == ("frame 1", "frame 3", "frame 5")
    assert np.bincount(panels.panels).tolist() == list(video.runs)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"patch_size": 14}, CheckpointError),
        ({"merge_size": 4}, CheckpointError),
        ({"temporal_patch_size": 1}, CheckpointError),
        ({"do_resize": False}, UnsupportedError),
        ({"image_processor_type": "CLIPImageProcessor"}, UnsupportedError),
        ({"size": {"shortest_edge": 9000, "longest_edge": 100}}, UnsupportedError),
        ({"size": [4096, 100_000]}, UnsupportedError),
        ({"size": "large"}, UnsupportedError),
        ({"size": {"shortest_edge": 0.5, "longest_edge": 1}}, UnsupportedError),
        ({"size": {"shortest_edge": "1", "longest_edge": 100}}, UnsupportedError),
        ({"size": {"longest_edge": 10**13}}, UnsupportedError),
        ({"max_pixels": float("nan")}, UnsupportedError),
        ({"max_pixels": [1]}, UnsupportedError),
    ],
)
def test_a_processor_that_disagrees_with_the_model_is_refused(
    changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        family("qwen3_vl", **changes)


def test_areas_are_read_in_every_spelling() -> None:
    spellings = [
        {"min_pixels": 4096, "max_pixels": 100_000, "size": None},
        {"size": {"min_pixels": 4096, "max_pixels": 100_000}},
        {"size": {"shortest_edge": 4096, "longest_edge": 100_000}},
    ]
    areas = {family("qwen3_vl", **spelling).images.area for spelling in spellings}
    assert len(areas) == 1
    nested = {"image_processor": preprocessor("qwen3_vl")}
    assert family_class("qwen3_vl").from_facts(facts("qwen3_vl"), nested, None)
