"""Crops and packing of pictures, bit for bit those of transformers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from numpy.typing import NDArray
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from divprune.runtime.errors import CheckpointError, ImageError, OptionError, UnsupportedError
from divprune.runtime.families._anyres import best_pinpoint
from divprune.runtime.families.llava_next import LlavaNext
from divprune.runtime.families.llava_next_video import LlavaNextVideo
from divprune.runtime.families.llava_onevision import LlavaOnevision
from divprune.runtime.families.protocol import Prepared, TokenMap
from tests.runtime.families.anyres_cases import (
    NEXT_FACTS,
    NEXT_GRIDS,
    NEXT_PROCESSOR,
    NEXT_VIDEO_FACTS,
    ONEVISION_FACTS,
    ONEVISION_GRIDS,
    ONEVISION_PROCESSOR,
    SIZES,
    noise,
)

TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "vocab_size": 9}
TEXT |= {"num_attention_heads": 2}
TOWER = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "patch_size": 4}
TOWER |= {"num_attention_heads": 2}

every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


def next_family(limit: int | None = None) -> LlavaNext:
    family = LlavaNext.from_facts(NEXT_FACTS, NEXT_PROCESSOR, limit)
    assert isinstance(family, LlavaNext)
    return family


def onevision_family(limit: int | None = None) -> LlavaOnevision:
    family = LlavaOnevision.from_facts(ONEVISION_FACTS, ONEVISION_PROCESSOR, limit)
    assert isinstance(family, LlavaOnevision)
    return family


@pytest.fixture(scope="module")
def next_model() -> Any:
    return LlavaNextModel(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(image_size=16, **TOWER),
            text_config=LlamaConfig(**TEXT),
            image_grid_pinpoints=NEXT_GRIDS,
        )
    )


@pytest.fixture(scope="module")
def onevision_model() -> Any:
    return LlavaOnevisionModel(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(image_size=20, **TOWER),
            text_config=LlamaConfig(**TEXT),
            image_grid_pinpoints=ONEVISION_GRIDS,
            vision_aspect_ratio="anyres_max_2",
        )
    )


def gather(prepared: Prepared, rows: torch.Tensor) -> torch.Tensor:
    """What the graph makes of the index."""
    index = torch.from_numpy(prepared.inputs["token_rows"])
    if index.ndim == 1:
        return rows[index]
    weights = torch.from_numpy(prepared.inputs["token_weights"])
    return (rows[index] * weights[..., None]).sum(dim=1)


@every_size
def test_next_crops_are_those_of_transformers(size: tuple[int, int]) -> None:
    picture = noise(size)
    reference = LlavaNextImageProcessorPil(**NEXT_PROCESSOR)(picture, return_tensors="np")
    prepared = next_family().prepare_image(picture)
    np.testing.assert_array_equal(prepared.inputs["pixel_values"], reference["pixel_values"][0])


@every_size
@pytest.mark.parametrize("family", [LlavaNext, LlavaNextVideo])
def test_next_packing_is_bit_equal_to_that_of_transformers(
    size: tuple[int, int], family: Any, next_model: Any
) -> None:
    facts = NEXT_FACTS if family is LlavaNext else NEXT_VIDEO_FACTS
    prepared = family.from_facts(facts, NEXT_PROCESSOR, None).prepare_image(noise(size))
    crops = len(prepared.inputs["pixel_values"])
    features, newline = torch.randn(crops, 16, 8), torch.randn(8)
    (expected,), _ = next_model.pack_image_features(
        [features], [list(size[::-1])], "default", image_newline=newline
    )
    packed = gather(prepared, torch.cat([features.flatten(0, 1), newline[None]]))
    assert torch.equal(packed, expected)
    assert prepared.num_tokens == len(expected) == sum(prepared.runs)


@every_size
@pytest.mark.parametrize("num_media", [1, 2])
def test_onevision_crops_are_those_of_transformers(size: tuple[int, int], num_media: int) -> None:
    picture = noise(size)
    processor = LlavaOnevisionImageProcessorPil(**ONEVISION_PROCESSOR)
    reference = processor([[picture] * num_media], return_tensors="np")
    prepared = onevision_family().prepare_image(picture, num_media)
    np.testing.assert_array_equal(prepared.inputs["pixel_values"], reference["pixel_values"][0])


@every_size
@pytest.mark.parametrize("num_media", [1, 2])
def test_onevision_packing_is_that_of_transformers(
    size: tuple[int, int], num_media: int, onevision_model: Any
) -> None:
    prepared = onevision_family().prepare_image(noise(size), num_media)
    crops = len(prepared.inputs["pixel_values"])
    features, newline = torch.randn(crops, 25, 8), torch.randn(8)
    (expected,), _ = onevision_model.pack_image_features(
        [features], [list(size[::-1])], newline, vision_aspect_ratio="anyres_max_2"
    )
    packed = gather(prepared, torch.cat([features.flatten(0, 1), newline[None]]))
    torch.testing.assert_close(packed, expected, rtol=0, atol=3e-6)


def test_onevision_shrinks_the_largest_grid() -> None:
    prepared = onevision_family().prepare_image(noise((300, 300)))
    assert len(prepared.inputs["pixel_values"]) == 17
    assert prepared.num_tokens == 25 + 7 * 7 + 7


def test_the_best_grid_is_the_one_that_transformers_picks() -> None:
    grids = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
    generator = np.random.default_rng(0)
    for height, width in generator.integers(1, 2500, (2000, 2)).tolist():
        assert best_pinpoint((height, width), grids) == select_best_resolution(
            (height, width), grids
        )


@pytest.mark.parametrize(
    "size, tokens",
    [
        ((640, 480), 2340),
        ((1280, 720), 1948),
        ((1000, 1000), 2928),
        ((336, 336), 1176),
        ((1200, 300), 1890),
        ((300, 1200), 1944),
    ],
)
def test_real_sizes_have_the_known_numbers_of_tokens(size: tuple[int, int], tokens: int) -> None:
    assert real_next(None).count_tokens(*size) == tokens


def real_next(limit: int | None) -> LlavaNext:
    grids = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    facts = {**NEXT_FACTS, "image_size": 336, "patch_size": 14, "pinpoints": grids}
    square = {"height": 336, "width": 336}
    processor = {**NEXT_PROCESSOR, "image_grid_pinpoints": grids, "crop_size": square}
    family = LlavaNext.from_facts(facts, processor | {"size": {"shortest_edge": 336}}, limit)
    assert isinstance(family, LlavaNext)
    return family


def test_ranges_are_those_of_the_pinpoints() -> None:
    dims = real_next(None).dims()
    crops, tokens = dims["crops"], dims["tokens"]
    assert (crops.minimum, crops.optimum, crops.maximum) == (3, 5, 5)
    assert (tokens.minimum, tokens.optimum, tokens.maximum) == (576, 2340, 2928)


@every_size
@pytest.mark.parametrize("make", [next_family, onevision_family])
def test_every_picture_lies_within_the_ranges(size: tuple[int, int], make: Any) -> None:
    family = make()
    prepared = family.prepare_image(noise(size))
    dims = family.dims()
    crops = len(prepared.inputs["pixel_values"])
    assert prepared.num_tokens == family.count_tokens(*size)
    assert dims["crops"].minimum <= crops <= dims["crops"].maximum
    assert dims["tokens"].minimum <= prepared.num_tokens <= dims["tokens"].maximum


@every_size
@pytest.mark.parametrize("make", [next_family, onevision_family])
def test_the_token_map_covers_the_picture_in_each_view(size: tuple[int, int], make: Any) -> None:
    prepared = make().prepare_image(noise(size))
    token_map = prepared.token_map()
    assert token_map.panel_names == ("whole", "tiles")
    assert token_map.boxes.shape == (prepared.num_tokens, 4)
    whole, tiles = (covered(token_map, panel, size) for panel in (0, 1))
    assert whole.all()
    # transformers drops a row of patches of which less than one is the picture.
    fit = fitted(size, make)
    edge = math.ceil(4 * max(size[0] / fit[0], size[1] / fit[1]))
    assert tiles[edge : size[1] - edge, edge : size[0] - edge].all()


def covered(token_map: TokenMap, panel: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which pixels' centres lie in a box of a panel, bool [height, width]."""
    pixels = np.zeros(size[::-1], bool)
    boxes = token_map.boxes[token_map.panels == panel]
    for box in np.ceil(boxes[~np.isnan(boxes[:, 0])] - 0.5).astype(int):
        left, top, right, bottom = box
        pixels[top:bottom, left:right] = True
    return pixels


def fitted(size: tuple[int, int], make: Any) -> tuple[int, int]:
    """Width and height of a picture on its grid."""
    family = make()
    height, width = family._tiling(size[::-1]).resized
    return width, height


def test_newlines_have_no_place_in_the_picture() -> None:
    prepared = next_family().prepare_image(noise((64, 48)))
    boxes = prepared.token_map().boxes
    is_newline = prepared.inputs["token_rows"] == 16 * len(prepared.inputs["pixel_values"])
    assert np.isnan(boxes[is_newline]).all()
    assert not np.isnan(boxes[~is_newline]).any()
    assert is_newline.sum() == 6


def test_a_limit_drops_larger_grids_and_says_so() -> None:
    limited = next_family(limit=65)
    assert limited.grids.pinpoints == ((16, 32), (32, 16))
    prepared = limited.prepare_image(noise((48, 48)))
    assert prepared.num_tokens <= 65
    assert prepared.note is not None
    assert "--max-image-tokens 65" in prepared.note
    assert limited.prepare_image(noise((32, 16))).note is None
    assert limited.dims()["tokens"].maximum <= 65


def test_a_limit_below_every_grid_names_the_smallest_that_works() -> None:
    with pytest.raises(OptionError, match="--max-image-tokens 52"):
        next_family(limit=51)
    assert next_family(limit=52).grids.pinpoints == ((16, 32),)


def test_grids_of_config_and_image_processor_must_agree() -> None:
    other = {**NEXT_PROCESSOR, "image_grid_pinpoints": NEXT_GRIDS[:3]}
    with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
        LlavaNext.from_facts(NEXT_FACTS, other, None)


def test_a_missing_size_is_the_class_default_and_does_not_fit_the_tower() -> None:
    without = {key: value for key, value in NEXT_PROCESSOR.items() if key != "size"}
    with pytest.raises(CheckpointError, match="16 x 16"):
        LlavaNext.from_facts(NEXT_FACTS, without, None)


def test_an_image_processor_of_another_family_is_refused() -> None:
    other = {**NEXT_PROCESSOR, "image_processor_type": "Idefics3ImageProcessor"}
    with pytest.raises(UnsupportedError, match="Idefics3ImageProcessor"):
        LlavaNext.from_facts(NEXT_FACTS, other, None)


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        next_family().count_tokens(0, 5)


def test_positions_are_counted() -> None:
    positions, following = next_family().positions(np.array([False, True, True, False]), [])
    assert positions.tolist() == [[0, 1, 2, 3]]
    assert following == 4
