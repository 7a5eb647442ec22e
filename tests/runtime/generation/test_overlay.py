from __future__ import annotations

import io
import random
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from divprune.runtime import Pipeline
from divprune.runtime.errors import OptionError
from divprune.runtime.families import TokenMap
from divprune.runtime.families.llava import crop_boxes
from divprune.runtime.generation.overlay import (
    ENDINGS,
    count_undrawn,
    draw_contact_sheet,
    draw_overlay,
    encode_overlay,
)
from divprune.runtime.inputs.image_processor import ImageProcessor

KEPT = (0, 4, 8)
GREEN = (40, 200, 120)
LETTER = 15


def processor(kind: str, size: object, crop: int | None = None, **options: object):
    cropped = {"do_center_crop": crop is not None, "crop_size": crop}
    config = {"image_processor_type": kind, "size": size, **cropped, **options}
    return ImageProcessor.from_config(config)


def token_map(
    picture: Image.Image, where: ImageProcessor, side: int = 20, grid: int = 3, leading: int = 0
) -> TokenMap:
    """Where ``grid`` x ``grid`` patches of ``side`` pixels of the tower's input lie."""
    boxes = crop_boxes(where.geometry(*picture.size), (grid, grid), side)
    boxes = np.concatenate([np.full((leading, 4), np.nan, np.float32), boxes])
    return TokenMap(boxes, np.zeros(len(boxes), np.int64), ("whole",))


def draw(
    picture: Image.Image,
    where: ImageProcessor,
    kept: Sequence[int],
    order: Sequence[int] | None = None,
    **grid: int,
) -> Image.Image:
    return draw_overlay(picture, token_map(picture, where, **grid), kept, order)


CROP = processor("CLIPImageProcessor", 60, 60)
SQUASH = processor("SiglipImageProcessor", {"height": 60, "width": 60})
PAD = processor("LlavaImageProcessor", {"shortest_edge": 60}, 60, do_pad=True)
FRAME = processor("CLIPImageProcessor", 40, 60)
LEFTOVER = processor("SiglipImageProcessor", {"height": 72, "width": 72})

# A letter is a square of LETTER pixels of the picture: Kept, removed, . in no patch at all.
# The top left patch, the one in the middle and the bottom right one are kept.
PICTURES = {
    "crop_square": (CROP, "Krr rKr rrK"),
    "crop_landscape": (CROP, ".Krr. .rKr. .rrK."),
    "crop_portrait": (CROP, "... ... Krr rKr rrK ... ..."),
    "crop_of_an_enlarged_patch": (CROP, ".KKrrrr. .KKrrrr. .rrKKrr. .rrKKrr. .rrrrKK. .rrrrKK."),
    "squash_square": (SQUASH, "Krr rKr rrK"),
    "squash_landscape": (SQUASH, "KKKrrrrrr rrrKKKrrr rrrrrrKKK"),
    "squash_portrait": (SQUASH, "Krr Krr rKr rKr rrK rrK"),
    "pad_square": (PAD, "Krr rKr rrK"),
    "pad_landscape": (PAD, "KKrrrr rrKKrr rrKKrr rrrrKK"),
    "pad_portrait": (PAD, "Krrr Krrr rKKr rKKr rrrK rrrK"),
    "frame_square": (FRAME, "Krrr rKKr rKKr rrrK"),
    "leftover_square": (LEFTOVER, "Krr. rKr. rrK. ...."),
}


def constructed(letters: str) -> Image.Image:
    rows = letters.split()
    return Image.new("RGB", (LETTER * len(rows[0]), LETTER * len(rows)), GREEN)


def read_letters(overlay: Image.Image) -> str:
    """The kind of each square of the overlay, by the green in its middle."""
    centres = np.asarray(overlay)[LETTER // 2 :: LETTER, LETTER // 2 :: LETTER, 1]
    return " ".join(
        "".join("K" if level == GREEN[1] else "r" if level > 40 else "." for level in row)
        for row in centres
    )


@pytest.mark.parametrize("name", PICTURES)
def test_kept_patches_are_bright_where_they_lie_in_the_picture(name):
    where, letters = PICTURES[name]
    overlay = draw(constructed(letters), where, KEPT, side=18 if where is LEFTOVER else 20)
    assert overlay.size == constructed(letters).size
    assert read_letters(overlay) == letters


@pytest.mark.parametrize("size", [(90, 90), (150, 90), (80, 170), (61, 97), (61, 60), (240, 70)])
@pytest.mark.parametrize("where", [CROP, SQUASH, PAD], ids=["crop", "squash", "pad"])
def test_the_tower_finds_the_kept_patches_of_an_overlay_as_they_were(where, size):
    """The mapping back, checked by the mapping there: the processor itself."""
    picture = Image.new("RGB", size, GREEN)
    kept = (1, 3, 4, 8)
    before, after = (where(image)[0, 1] for image in (picture, draw(picture, where, kept)))
    for index in range(9):
        top, left = (20 * place for place in divmod(index, 3))
        right, bottom = left + 20, top + 20
        # Resizing blurs the outline and the edges: the middle of a patch is what counts.
        middle = (slice(top + 8, bottom - 8), slice(left + 8, right - 8))
        if (before[middle] == before[30, 30]).all():  # no padding in it
            same = np.abs(after[middle] - before[middle]).max() < 0.05
            assert same == (index in kept), index


def test_removed_patches_lose_their_colour_and_less_light_than_the_outside():
    overlay = draw(constructed(".Krr. .rKr. .rrK."), CROP, KEPT)
    levels = {name: np.array(overlay.getpixel(at)) for name, at in
              {"kept": (22, 7), "removed": (37, 7), "outside": (7, 7)}.items()}  # fmt: skip
    assert levels["kept"].tolist() == list(GREEN)
    assert np.ptp(levels["removed"]) < 0.2 * np.ptp(levels["kept"])
    assert np.ptp(levels["outside"]) == 0
    assert levels["outside"].mean() < levels["removed"].mean() / 2


def test_a_kept_patch_has_an_outline_and_a_tiny_one_has_none():
    overlay = draw(Image.new("RGB", (90, 90), GREEN), CROP, KEPT)
    assert overlay.getpixel((0, 0)) == overlay.getpixel((29, 29)) == (255, 196, 0)
    assert overlay.getpixel((1, 1)) == overlay.getpixel((28, 28)) == GREEN
    tiny = draw(Image.new("RGB", (21, 21), GREEN), CROP, KEPT)
    assert tiny.getpixel((0, 0)) == tiny.getpixel((6, 6)) == GREEN


def test_a_patch_in_the_padding_is_left_out():
    picture = Image.new("RGB", (90, 30), GREEN)  # the middle row of three
    nothing = draw(picture, PAD, (0, 8))
    assert max(level for _, level in nothing.getextrema()) < 100


@pytest.mark.parametrize("kept, undrawn", [((3, 4), 0), ((0, 4, 8), 2), ((0, 8), 2)])
def test_patches_in_the_padding_are_counted_and_spoken_of(caplog, kept, undrawn):
    picture = Image.new("RGB", (90, 30), GREEN)
    assert count_undrawn(token_map(picture, PAD), kept) == undrawn
    draw(picture, PAD, kept)
    words = f"{undrawn} kept tokens lie in padding"
    assert (words in caplog.text) == (undrawn > 0)
    assert len(caplog.records) == (undrawn > 0)


def test_the_class_token_is_no_patch():
    picture = Image.new("RGB", (90, 90), GREEN)
    with_class = draw(picture, CROP, (0, 1, 5, 9), leading=1)
    assert with_class.tobytes() == draw(picture, CROP, KEPT).tobytes()


@pytest.mark.parametrize("kept", [(-1,), (9,)])
def test_an_index_outside_the_grid_is_refused(kept):
    with pytest.raises(ValueError, match="of 9"):
        draw(Image.new("RGB", (90, 90)), CROP, kept)


def has_number(overlay: Image.Image, column: int, row: int) -> bool:
    """Whether there is white, which the green picture does not have, in a patch of 3 x 3."""
    width, height = overlay.width // 3, overlay.height // 3
    patch = np.asarray(overlay)[row * height : (row + 1) * height, column * width :][:, :width]
    return bool((patch > 200).all(axis=-1).any())


@pytest.mark.parametrize("side", [3, 20, 90, 300, 2000])
def test_numbers_are_readable_at_any_picture_size(side):
    picture = Image.new("RGB", (side, side), GREEN)
    overlay = draw(picture, CROP, KEPT, (8, 0, 4))
    assert overlay.width % side == 0
    assert overlay.width >= 78
    assert [has_number(overlay, n, n) for n in range(3)] == [True, True, True]
    assert not has_number(overlay, 1, 0)
    if side >= 90:
        assert overlay.size == picture.size


def test_numbers_follow_the_order_of_selection():
    picture = Image.new("RGB", (90, 90), GREEN)
    orders = [(0, 4, 8), (4, 0, 8), (0, 4, 8)]
    first, swapped, again = (np.asarray(draw(picture, CROP, KEPT, order)) for order in orders)
    assert (first == again).all()
    top_left, middle, last = (slice(0, 30),) * 2, (slice(30, 60),) * 2, (slice(60, 90),) * 2
    assert (first[top_left] == swapped[middle]).all()
    assert (first[middle] == swapped[top_left]).all()
    assert (first[top_left] != first[middle]).any()
    assert (first[last] == swapped[last]).all()


def test_numbers_that_cannot_fit_are_left_out():
    # Two pixels high, so that enlarging it enough would make it 26 times 4000 wide.
    sliver = Image.new("RGB", (4000, 2), GREEN)
    overlay = draw(sliver, SQUASH, KEPT, KEPT)
    assert overlay.size == sliver.size
    # Only 2 of the 20 pixels of the outer columns are in the picture, the rest is padding.
    narrow = draw(Image.new("RGB", (36, 90), GREEN), PAD, (3, 4), (3, 4))
    assert narrow.size == (36, 90)
    assert not (np.asarray(narrow)[30:60, :3] == 255).all(axis=-1).any()
    assert (np.asarray(narrow)[30:60, 3:33] == 255).all(axis=-1).any()


def test_hundreds_of_numbers_fit_a_photograph():
    order = random.Random(0).sample(range(576), 288)
    where = processor("CLIPImageProcessor", 336, 336)
    picture = Image.new("RGB", (640, 480), GREEN)
    overlay = draw(picture, where, order, order, side=14, grid=24)
    patch = overlay.height // 24
    pixels = np.asarray(overlay)
    for index in (order[0], order[99], order[287]):
        row, column = divmod(index, 24)
        left = (overlay.width - overlay.height) // 2 + column * patch
        inside = pixels[row * patch : (row + 1) * patch, left : left + patch]
        assert (inside == 255).all(axis=-1).any()


def test_views_that_overlap_stand_side_by_side():
    picture = Image.new("RGB", (60, 60), GREEN)
    whole, half = [0, 0, 60, 60], [0, 0, 30, 60]
    views = TokenMap(np.array([whole, half], np.float32), np.array([0, 1]), ("whole", "tiles"))
    both = np.asarray(draw_overlay(picture, views, (1,)))
    assert both.shape == (60, 128, 3)
    assert both[30, 30, 1] < GREEN[1], "the whole view's token was removed"
    assert both[30, 68 + 15, 1] == GREEN[1], "the tile's was kept"
    assert both[30, 68 + 45, 1] < 40, "no token of this view covers it"


def test_a_video_is_a_sheet_of_its_frames():
    frames = [Image.new("RGB", (40, 30), GREEN) for _ in range(5)]
    boxes = np.tile(np.array([[0, 0, 40, 30]], np.float32), (5, 1))
    video = TokenMap(boxes, np.arange(5), tuple(f"frame {i}" for i in range(5)))
    sheet = np.asarray(draw_contact_sheet(frames, video, (0, 4)))
    assert sheet.shape == (30 * 2 + 8, 40 * 3 + 16, 3)
    bright = [sheet[15 + 38 * (i // 3), 20 + 48 * (i % 3), 1] == GREEN[1] for i in range(5)]
    assert bright == [True, False, False, False, True]


@pytest.mark.parametrize("ending", [*ENDINGS, ".PNG"])
def test_overlays_are_encoded_in_the_format_of_their_ending(ending):
    picture = Image.open(io.BytesIO(encode_overlay(Image.new("RGB", (8, 6), GREEN), ending)))
    assert picture.format == ENDINGS[ending.lower()]
    assert picture.size == (8, 6)


@pytest.fixture(scope="module")
def pipeline(engine_dir):
    pytest.importorskip("onnxruntime")
    return Pipeline.from_dir(engine_dir, threads=1)


def test_the_kept_patches_of_an_answer_are_bright(pipeline):
    noise = np.random.default_rng(0).integers(128, 256, (120, 120, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    (pruning,) = pipeline.generate(picture, "What is this?", max_new_tokens=1).result.images
    assert sorted(pruning.selection_order) == list(pruning.kept_indices)
    columns = round(pruning.num_image_tokens**0.5)
    patch = 120 // columns
    overlay = np.asarray(pipeline.draw_overlay(picture, pruning))
    bright = {
        row * columns + column
        for row in range(columns)
        for column in range(columns)
        if overlay[row * patch + 4 : (row + 1) * patch - 4, column * patch + 4 :][
            :, : patch - 8
        ].mean()
        > 128
    }
    assert bright == set(pruning.kept_indices)
    numbered = pipeline.draw_overlay(picture, pruning, numbers=True)
    assert numbered.tobytes() != overlay.tobytes()


def test_all_tokens_have_no_order(pipeline):
    picture = Image.new("RGB", (60, 60), GREEN)
    result = pipeline.generate(picture, "What is this?", keep=1.0, max_new_tokens=1).result
    assert result.images[0].selection_order is None
    assert np.asarray(pipeline.draw_overlay(picture, result.images[0])).min() >= 0
    with pytest.raises(OptionError, match="nothing to number"):
        pipeline.draw_overlay(picture, result.images[0], numbers=True)
