"""Texts that end an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.runtime.errors import OptionError
from divprune.runtime.generation.stop_text import StopText, validate_stop


def shown(pieces, stop):
    filter_ = StopText(stop)
    out = []
    for piece in pieces:
        out.append(filter_.push(piece))
        if filter_.found:
            return "".join(out), True
    return "".join(out) + filter_.finish(), False


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        (["red", " car", "."], ["."], ("red car", True)),
        (["a", "#", "#", "#b"], ["###"], ("a", True)),
        (["a##", "b"], ["###"], ("a##b", False)),
        (["ab", "ab", "c"], ["abc"], ("ab", True)),
        (["one two"], ["two", "one"], ("", True)),
        (["x#"], ["##"], ("x#", False)),
        (["plain"], [], ("plain", False)),
        (["日", "本", "語"], ["本語"], ("日", True)),
    ],
)
def test_answer_ends_before_the_text(pieces, stop, expected):
    assert shown(pieces, stop) == expected


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_pieces_make_no_difference(pieces, stop):
    text = "".join(pieces)
    places = [text.find(word) for word in stop if word in text]
    out, found = shown(pieces, stop)
    assert found == bool(places)
    if not places:
        assert out == text
    else:
        assert text.startswith(out)
        assert not any(word in out for word in stop)


@pytest.mark.parametrize("stop", [[""], ["a", ""], ""])
def test_empty_text_is_refused(stop):
    with pytest.raises(OptionError, match="ends the answer"):
        validate_stop(stop)


def test_one_text_alone_is_taken_as_one():
    assert validate_stop("###") == ("###",)
