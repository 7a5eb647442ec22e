from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.runtime.generation.rows import prune_prompt
from divprune.runtime.inputs.prompt import Prompt

IMAGE = 9


def prompt(ids: list[int], spans: list[list[int]]) -> Prompt:
    array = np.array(ids, np.int64)
    return Prompt("", array, array == IMAGE, tuple(np.array(rows, np.int64) for rows in spans))


def prune(ids, spans, kept, mode, positions=None, following=None):
    whole = prompt(ids, spans)
    if positions is None:
        positions, following = np.arange(len(ids))[np.newaxis], len(ids)
    return prune_prompt(whole, [np.array(k, np.int64) for k in kept], positions, following, mode)


def test_contiguous_positions_count_the_rows_that_are_left():
    rows = prune([1, IMAGE, IMAGE, IMAGE, 2], [[1, 2, 3]], [[0, 2]], "contiguous")
    assert rows.ids.tolist() == [1, IMAGE, IMAGE, 2]
    assert rows.positions.tolist() == [[0, 1, 2, 3]]
    assert rows.next_position == len(rows) == 4
    assert rows.spans[0].tolist() == [1, 2]


def test_original_positions_leave_gaps_where_tokens_were_removed():
    ids = [1, 2, *[IMAGE] * 9, 3, *[IMAGE] * 5, 4]
    spans = [list(range(2, 11)), list(range(12, 17))]
    rows = prune(ids, spans, [[3, 7], [0]], "original")
    assert rows.positions.tolist() == [[0, 1, 5, 9, 11, 12, 17]]
    assert rows.next_position == 18
    assert [span.tolist() for span in rows.spans] == [[2, 3], [5]]


def test_three_axes_are_gathered_by_column():
    positions = np.array([[0, 1, 1, 1, 1, 3], [0, 1, 1, 2, 2, 3], [0, 1, 2, 1, 2, 3]])
    ids = [1, *[IMAGE] * 4, 2]
    rows = prune(ids, [[1, 2, 3, 4]], [[0, 3]], "original", positions, 4)
    assert rows.positions.tolist() == [[0, 1, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert rows.next_position == 4


def test_a_picture_of_several_runs_may_lose_one_whole():
    ids = [IMAGE, IMAGE, 5, IMAGE, IMAGE, 6]
    rows = prune(ids, [[0, 1, 3, 4]], [[2]], "original")
    assert rows.ids.tolist() == [5, IMAGE, 6]
    assert rows.positions.tolist() == [[2, 3, 5]]
    assert rows.spans[0].tolist() == [1]


def test_unknown_positions_are_an_error():
    with pytest.raises(ValueError, match="mrope"):
        prune([1], [], [], "mrope")


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[int], list[list[int]], list[list[int]]]:
    ids: list[int] = []
    spans, kept = [], []
    for _ in range(draw(st.integers(0, 3))):
        rows: list[int] = []
        for _ in range(draw(st.integers(1, 3))):
            ids += [1] * draw(st.integers(0, 3))
            size = draw(st.integers(1, 6))
            rows += range(len(ids), len(ids) + size)
            ids += [IMAGE] * size
        spans.append(rows)
        places = st.integers(0, len(rows) - 1)
        kept.append(sorted(draw(st.sets(places, min_size=1))))
    return ids + [1] * draw(st.integers(1, 4)), spans, kept


@given(prompts())
def test_original_positions_are_those_of_the_rows_that_survive(case):
    ids, spans, kept = case
    gone = {row for rows, k in zip(spans, kept, strict=True) for row in rows}
    gone -= {rows[place] for rows, k in zip(spans, kept, strict=True) for place in k}
    left = [row for row in range(len(ids)) if row not in gone]

    rows = prune(ids, spans, kept, "original")

    assert rows.positions[0].tolist() == left
    assert rows.ids.tolist() == [ids[row] for row in left]
    for span, all_rows, k in zip(rows.spans, spans, kept, strict=True):
        assert rows.positions[0][span].tolist() == [all_rows[place] for place in k]
