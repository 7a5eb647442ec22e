"""Every advice in the packages is followed by a test."""

from __future__ import annotations

from tests.advice.covered import ELSEWHERE, FOLLOWED
from tests.advice.sites import ROOT, find_sites
from tests.advice.tools import site_of


def test_every_advice_is_followed_by_a_test():
    followed = {*(key for cases in FOLLOWED for key in cases.values()), *ELSEWHERE}
    found = {site.key for site in find_sites()}
    assert found - followed == set(), "new advice: follow it in a test"
    assert followed - found == set(), "advice that is no more"


def test_the_tests_that_are_named_exist():
    assert all((ROOT / path).is_file() for path in ELSEWHERE.values())


def test_an_advice_is_found_by_every_line_of_its_call():
    sites = find_sites()
    for site in sites:
        assert site_of(site.path, site.last, sites) is not None
        assert site_of(site.path, site.first, sites) is not None
