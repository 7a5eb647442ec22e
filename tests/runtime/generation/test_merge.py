from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from divprune.runtime.generation.embeddings import EmbeddingTable
from divprune.runtime.generation.merge import splice, splice_planes

IMAGE = 9


def features(*numbers: float) -> np.ndarray:
    return np.array([[number] * 4 for number in numbers], np.float32)


@pytest.fixture
def table(tmp_path) -> EmbeddingTable:
    rows = np.repeat(np.arange(10, dtype=np.float32)[:, None], 4, axis=1)
    save_file({"embed_tokens": rows}, tmp_path / "e.safetensors")
    return EmbeddingTable(tmp_path / "e.safetensors")


def test_text_rows_come_from_the_table_and_visual_rows_from_the_features(table):
    ids = np.array([1, 2, IMAGE, IMAGE, 3, IMAGE, 4])
    embeds = splice(ids, ids == IMAGE, [features(105, 108), features(200)], table)
    assert embeds.shape == (1, 7, 4)
    assert embeds[0, :, 0].tolist() == [1, 2, 105, 108, 3, 200, 4]


def test_features_are_stored_in_the_dtype_of_the_table(table):
    half = np.full((1, 4), 0.5, np.float16)
    embeds = splice(np.array([IMAGE, 1]), np.array([True, False]), [half], table)
    assert embeds.dtype == np.float32
    assert embeds[0, 0].tolist() == [0.5] * 4


def test_a_prompt_without_pictures_is_text_only(table):
    embeds = splice(np.array([4, 2]), np.zeros(2, bool), [], table)
    assert embeds[0, :, 0].tolist() == [4, 2]


def test_another_number_of_visual_rows_than_features_is_an_error(table):
    with pytest.raises(ValueError, match="shape mismatch"):
        splice(np.array([IMAGE] * 3), np.ones(3, bool), [features(1, 2)], table)


def test_planes_are_zero_for_text(table):
    is_visual = np.array([False, True, True, False, True])
    planes = splice_planes(
        is_visual, [(features(1, 2), features(5, 6)), (features(3), features(7))]
    )
    assert [plane.shape for plane in planes] == [(1, 5, 4)] * 2
    assert planes[0][0, :, 0].tolist() == [0, 1, 2, 0, 3]
    assert planes[1][0, :, 3].tolist() == [0, 5, 6, 0, 7]


def test_without_planes_there_are_none():
    assert splice_planes(np.ones(2, bool), [(), ()]) == ()
