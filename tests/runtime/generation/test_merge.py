from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from divprune.runtime.generation.embeddings import EmbeddingTable
from divprune.runtime.generation.kept_tokens import KeptTokens
from divprune.runtime.generation.merge import position_ids, splice

IMAGE = 9


def kept(indices: list[int], num_image_tokens: int, hidden: int = 4, base: int = 100) -> KeptTokens:
    features = np.array([[base + index] * hidden for index in indices], np.float32)
    return KeptTokens(np.array(indices, np.int64), features, num_image_tokens)


@pytest.fixture
def table(tmp_path) -> EmbeddingTable:
    rows = np.repeat(np.arange(10, dtype=np.float32)[:, None], 4, axis=1)
    save_file({"embed_tokens": rows}, tmp_path / "e.safetensors")
    return EmbeddingTable(tmp_path / "e.safetensors")


def test_text_rows_come_from_the_table_and_image_rows_from_the_features(table):
    ids = np.array([1, 2, IMAGE, IMAGE, 3, IMAGE, 4])
    images = [kept([5, 8], 12), kept([0], 12, base=200)]

    embeds = splice(ids, images, table, IMAGE)

    assert embeds.shape == (1, 7, 4)
    assert embeds[0, :, 0].tolist() == [1, 2, 105, 108, 3, 200, 4]


def test_features_are_stored_in_the_dtype_of_the_table(table):
    half = KeptTokens(np.array([0]), np.full((1, 4), 0.5, np.float16), 3)
    embeds = splice(np.array([IMAGE, 1]), [half], table, IMAGE)
    assert embeds.dtype == np.float32
    assert embeds[0, 0].tolist() == [0.5] * 4


def test_a_prompt_without_images_is_text_only(table):
    assert splice(np.array([4, 2]), [], table, IMAGE)[0, :, 0].tolist() == [4, 2]


def test_another_number_of_placeholders_than_features_is_an_error(table):
    with pytest.raises(ValueError, match="shape mismatch"):
        splice(np.array([IMAGE, IMAGE, IMAGE]), [kept([0, 1], 5)], table, IMAGE)


def test_contiguous_positions_count_the_rows():
    ids = np.array([1, IMAGE, IMAGE, 2])
    positions, following = position_ids(ids, [kept([3, 7], 9)], IMAGE, "contiguous")
    assert positions.tolist() == [[0, 1, 2, 3]]
    assert positions.dtype == np.int64
    assert following == 4


def test_original_positions_leave_gaps_where_tokens_were_removed():
    ids = np.array([1, 2, IMAGE, IMAGE, 3, IMAGE, 4])
    images = [kept([3, 7], 9), kept([0], 5)]
    # before pruning: two text tokens, 9 of the first image, one text, 5 of the second, one text
    positions, following = position_ids(ids, images, IMAGE, "original")
    assert positions.tolist() == [[0, 1, 5, 9, 11, 12, 17]]
    assert positions.dtype == np.int64
    assert following == 18


def test_images_side_by_side_at_the_end_are_told_apart():
    ids = np.array([IMAGE, IMAGE, IMAGE])
    positions, following = position_ids(ids, [kept([1], 4), kept([0, 3], 4)], IMAGE, "original")
    assert positions.tolist() == [[1, 4, 7]]
    assert following == 8


def test_unknown_positions_are_an_error():
    with pytest.raises(ValueError, match="mrope"):
        position_ids(np.array([1]), [], IMAGE, "mrope")


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], list[tuple[list[int], int]]]:
    parts, images = [], []
    for _ in range(draw(st.integers(0, 3))):
        parts += [1] * draw(st.integers(0, 4))
        size = draw(st.integers(1, 12))
        chosen = draw(st.sets(st.integers(0, size - 1), min_size=1))
        images.append((sorted(chosen), size))
        parts += [IMAGE] * len(chosen)
    return parts + [1] * draw(st.integers(0, 4)), images


@given(prompts())
def test_original_positions_are_those_of_the_rows_that_survive(prompt):
    ids, images = prompt
    # Independent of the code under test: write the unpruned prompt down and strike rows out.
    survives: list[bool] = []
    rows = iter(ids)
    queue = list(images)
    for token in rows:
        if token != IMAGE:
            survives.append(True)
            continue
        chosen, size = queue.pop(0)
        survives += [place in chosen for place in range(size)]
        for _ in chosen[1:]:
            next(rows)

    positions, following = position_ids(
        np.array(ids, np.int64), [kept(*image) for image in images], IMAGE, "original"
    )

    assert positions[0].tolist() == [row for row, stays in enumerate(survives) if stays]
    assert following == len(survives)
