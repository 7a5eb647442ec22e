from __future__ import annotations

import pytest

from divprune.runtime.directory.keep import AutoKeep, parse_keep, parse_keeps
from divprune.runtime.errors import OptionError


@pytest.mark.parametrize(
    "text, keeps",
    [
        ("0.1", (0.1,)),
        ("1.0,0.25,0.1", (1.0, 0.25, 0.1)),
        ("1, .5", (1.0, 0.5)),
        ("0.1,auto:0.8, auto:1", (0.1, AutoKeep(0.8), AutoKeep(1.0))),
    ],
)
def test_a_list_of_fractions_and_similarities_is_read(text, keeps):
    assert parse_keeps(text) == keeps


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not a list of fractions"),
        ("0.1,", "not a list of fractions"),
        ("0.1;0.2", "not a list of fractions"),
        ("0.1,auto:", "not a list of fractions"),
        ("auto", "not a list of fractions"),
        ("0.1,10", "--keep 0.1 if 10 % was meant"),
        ("0", "above 0"),
        ("nan", "not a number"),
        ("0.1,auto:1.5", "(?s)takes a similarity.*0 < C <= 1"),
    ],
)
def test_what_is_no_list_of_fractions_is_refused(text, message):
    with pytest.raises(OptionError, match=message):
        parse_keeps(text)


@pytest.mark.parametrize("cover", ["0", "-0.1", "1.01", "80", "nan", "inf", "-inf"])
def test_a_similarity_out_of_range_is_refused_with_the_range(cover):
    with pytest.raises(OptionError, match=rf"(?s)0 < C <= 1.*found: +auto:{cover}"):
        parse_keep(f"auto:{cover}")


@pytest.mark.parametrize("cover", [0.8, 0.123456789, 1.0, 1e-9])
def test_a_similarity_is_spelled_so_that_it_reads_back_the_same(cover):
    assert parse_keep(str(AutoKeep(cover))) == AutoKeep(cover)
