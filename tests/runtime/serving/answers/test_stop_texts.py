from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.runtime.serving.answers.stop_texts import StopTexts


def through(texts: list[str], pieces: list[str]) -> tuple[str, bool]:
    stops = StopTexts(texts)
    shown = []
    for piece in pieces:
        shown.append(stops.push(piece))
        if stops.found:
            return "".join(shown), True
    return "".join([*shown, stops.finish()]), False


@pytest.mark.parametrize(
    "pieces,shown,found",
    [
        (["abc"], "abc", False),
        (["one END two"], "one ", True),
        (["one E", "N", "D two"], "one ", True),
        (["one E", "N", "ough"], "one ENough", False),
        (["one EN"], "one EN", False),
        (["ENEND"], "EN", True),
    ],
)
def test_answer_ends_before_the_text(pieces: list[str], shown: str, found: bool) -> None:
    assert through(["END"], pieces) == (shown, found)


def test_the_first_of_several_texts_ends_it() -> None:
    assert through(["x", "abc"], ["12ab", "c x"]) == ("12", True)


def test_nothing_is_held_back_without_texts() -> None:
    stops = StopTexts([])
    assert stops.push("any") == "any"


def test_what_cannot_begin_a_text_is_shown_at_once() -> None:
    assert StopTexts(["END"]).push("one E") == "one "


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=8),
)
def test_cutting_into_pieces_changes_nothing(texts: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    shown, found = through(texts, pieces)
    assert found == any(text in whole for text in texts)
    if found:
        assert not any(text in shown for text in texts)
        assert whole.startswith(shown)
        assert any(whole[len(shown) :].startswith(text) for text in texts)
    else:
        assert shown == whole
