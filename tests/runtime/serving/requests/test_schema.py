from __future__ import annotations

from typing import Any

import pytest

from divprune.runtime.serving.errors import ApiError
from divprune.runtime.serving.requests.schema import parse_chat_request

HELLO = [{"role": "user", "content": "hello"}]


def parse(**fields: Any):
    return parse_chat_request({"messages": HELLO, **fields})


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


def test_messages_alone_are_a_greedy_request_without_limits() -> None:
    request = parse()
    assert (request.temperature, request.top_p, request.seed) == (0.0, 1.0, None)
    assert (request.max_tokens, request.stop, request.keep) == (None, (), None)
    assert not request.stream


def test_what_clients_send_without_meaning_it_passes() -> None:
    parse(
        n=1,
        logprobs=False,
        frequency_penalty=0,
        presence_penalty=0.0,
        tools=None,
        response_format={"type": "text"},
        user="someone",
        metadata={"a": "b"},
        store=False,
        stream_options=None,
    )


@pytest.mark.parametrize(
    "field,value",
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("frequency_penalty", 0.5),
        ("tools", [{"type": "function"}]),
        ("response_format", {"type": "json_object"}),
        ("audio", {}),
    ],
)
def test_field_that_would_change_the_answer_is_refused_by_name(field: str, value: Any) -> None:
    error = refused(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_parameter")


def test_misspelt_field_is_refused() -> None:
    assert refused(temprature=1).code == "unknown_parameter"


@pytest.mark.parametrize(
    "field,value",
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "1"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("seed", 1.5),
        ("seed", 2**63),
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("max_completion_tokens", True),
        ("stop", [""]),
        ("stop", ["a"] * 5),
        ("stop", 3),
        ("stop", "a" * 1001),
        ("keep", 0),
        ("keep", 1.5),
        ("keep", True),
        ("stream", 1),
        ("model", 3),
        ("kept_boxes", "yes"),
        ("messages", []),
        ("messages", "hello"),
        ("messages", ["hello"]),
        ("messages", HELLO * 513),
    ],
)
def test_value_out_of_range_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    assert (refused(**{field: value}).param or "").startswith(field)


def test_both_names_of_the_limit_are_taken_unless_they_differ() -> None:
    assert parse(max_tokens=5).max_tokens == parse(max_completion_tokens=5).max_tokens == 5
    assert parse(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert refused(max_tokens=5, max_completion_tokens=6).param == "max_tokens"


def test_negative_seed_is_a_seed_of_its_own() -> None:
    assert parse(seed=-1).seed == 2**64 - 1
    assert parse(seed=7).seed == 7


def test_usage_of_a_stream_goes_with_a_stream_only() -> None:
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage
    assert not parse(stream=True, stream_options={"include_obfuscation": False}).include_usage
    assert refused(stream_options={"include_usage": True}).param == "stream_options"
    assert refused(stream=True, stream_options={"usage": True}).code == "unknown_parameter"


def test_keep_may_be_a_fraction_or_automatic() -> None:
    assert parse(keep=0.1).keep == 0.1
    assert parse(keep="auto:0.8").keep == "auto:0.8"


@pytest.mark.parametrize("body", [[], "text", 3, None])
def test_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(ApiError):
        parse_chat_request(body)
