from __future__ import annotations

import pytest

from divprune.runtime.serving.access import Access
from divprune.runtime.serving.errors import ApiError

KEY = "correct-horse-battery"


@pytest.mark.parametrize(
    "host",
    ["localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.7:80", "a.localhost", "box.lan"],
)
def test_names_of_this_machine_and_plain_addresses_may_be_asked(host: str) -> None:
    Access((), ["box.lan"]).check_place({"host": host})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example"])
def test_name_that_leads_here_is_refused_without_keys(host: str) -> None:
    with pytest.raises(ApiError) as caught:
        Access(()).check_place({"host": host})
    assert caught.value.status == 403


def test_any_name_may_be_asked_with_keys() -> None:
    Access((KEY,)).check_place({"host": "vision.example"})


@pytest.mark.parametrize("host", ["", "[::1", "a b", ":80"])
def test_unusable_host_is_refused(host: str) -> None:
    with pytest.raises(ApiError):
        Access(()).check_place({"host": host})


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9000", ""])
def test_other_origins_are_refused(origin: str) -> None:
    for access in (Access(()), Access((KEY,))):
        with pytest.raises(ApiError) as caught:
            access.check_place({"host": "localhost:8000", "origin": origin})
        assert caught.value.status == 403


def test_own_page_may_ask_also_behind_a_proxy_with_tls() -> None:
    Access(()).check_place({"host": "localhost:8000", "origin": "http://localhost:8000"})
    Access((KEY,)).check_place({"host": "a.example", "origin": "https://a.example"})


@pytest.mark.parametrize(
    "header",
    [None, "", KEY, f"Basic {KEY}", "Bearer ", f"Bearer {KEY}x", "Bearer \udcff"],
)
def test_missing_or_wrong_key_is_refused(header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    with pytest.raises(ApiError) as caught:
        Access((KEY, "another-key")).check_key(headers)
    assert caught.value.status == 401
    assert KEY not in caught.value.message


def test_keys_tell_their_owners_apart_without_giving_the_key_away() -> None:
    access = Access((KEY, "another-key"))
    first = access.check_key({"authorization": f"Bearer {KEY}"})
    second = access.check_key({"authorization": "bearer another-key"})
    assert first
    assert second
    assert first != second
    assert KEY not in first
    assert Access(()).check_key({}) == ""
