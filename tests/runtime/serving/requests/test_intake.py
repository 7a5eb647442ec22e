"""JSON of a request that nothing behind it can use."""

from __future__ import annotations

import pytest

from divprune.runtime.serving.errors import ApiError
from divprune.runtime.serving.requests.intake import parse_json


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity}',
        b"[" * 100_000,
        b"[" * 500 + b"]" * 500,
        b'{"a":' * 100_000,
        b'{"seed": 1' + b"0" * 30 + b"}",
        b'{"seed": 1' + b"0" * 5000 + b"}",
        b'{"\\ud800": 1}',
        b'{"messages": [{"\\udfff": "x"}]}',
        b'{"stop": "\\ud800"}',
        b'{"messages": [{"content": [{"image_url": {"url": "data:image/png,\\ud800"}}]}]}',
    ],
)
def test_what_nothing_can_use_is_refused_in_text_that_can_be_sent(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_json(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    assert len(caught.value.message.encode()) < 300


@pytest.mark.parametrize("body", [b"{}", b"\xef\xbb\xbf{}", b'{"a": ["\\ud83d\\ude00", 1e400]}'])
def test_ordinary_json_is_read(body: bytes) -> None:
    assert isinstance(parse_json(body), dict)
