"""A chat completion request, checked field by field.

Fields of OpenAI's API that change nothing here are taken and ignored; fields that would change
the answer and are not supported are refused unless they have their neutral value, and fields that
nobody knows are refused: a misspelt one must not go unnoticed. ``null`` is as good as absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from divprune.runtime.serving.errors import ApiError, invalid

__all__ = ["ChatRequest", "parse_chat_request"]

_IGNORED = frozenset(
    {
        "metadata",
        "moderation",
        "name",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "tool_choice",
        "user",
        "verbosity",
        "reasoning_effort",
        "prediction",
        "web_search_options",
    }
)
# What is allowed of fields that cannot be carried out: the value that asks for nothing.
_NEUTRAL: dict[str, Callable[[Any], bool]] = {
    "n": lambda value: value == 1,
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "frequency_penalty": lambda value: value == 0,
    "presence_penalty": lambda value: value == 0,
    "logit_bias": lambda value: value == {},
    "tools": lambda value: value == [],
    "functions": lambda value: value == [],
    "function_call": lambda value: value == "none",
    "modalities": lambda value: value == ["text"],
    "response_format": lambda value: value == {"type": "text"},
    "audio": lambda _: False,
}
_KNOWN = frozenset(
    {
        "messages",
        "model",
        "stream",
        "stream_options",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "keep",
        "kept_boxes",
    }
)
_MAX_MESSAGES = 512
_MAX_STOPS = 4
_MAX_STOP_LENGTH = 1000


@dataclass(frozen=True)
class ChatRequest:
    """A checked request.

    Attributes:
        messages: As they came, a list of objects; `media.read_media` looks into them.
        model: The model asked for; None where the request does not say.
        stream: Whether the answer is sent as it is made.
        include_usage: Whether a stream ends with its usage.
        max_tokens: Longest answer; None where the request does not say.
        temperature: 0 is greedy, which is the default here.
        top_p: Nucleus of the draw.
        seed: Makes draws repeatable.
        stop: Texts that end the answer.
        keep: Fraction of visual tokens kept, or ``auto:C``; None where the request does not say.
        kept_boxes: Whether the answer says where in each picture the kept tokens lie.
    """

    messages: tuple[Mapping[str, Any], ...]
    model: str | None
    stream: bool
    include_usage: bool
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    keep: float | str | None
    kept_boxes: bool


def parse_chat_request(body: object) -> ChatRequest:
    """Check the JSON value of a request.

    Raises:
        ApiError: 400, naming the field.
    """
    if not isinstance(body, dict):
        raise invalid("the body is not a JSON object")
    fields = {key: value for key, value in body.items() if value is not None}
    _refuse_unsupported(fields)
    stream = _boolean(fields, "stream")
    return ChatRequest(
        messages=_messages(fields),
        model=_text(fields, "model"),
        stream=stream,
        include_usage=_include_usage(fields, stream),
        max_tokens=_max_tokens(fields),
        temperature=_number(fields, "temperature", 0.0, lambda x: 0 <= x <= 2, "0 to 2"),
        top_p=_number(fields, "top_p", 1.0, lambda x: 0 < x <= 1, "above 0, at most 1"),
        seed=_seed(fields),
        stop=_stop(fields),
        keep=_keep(fields),
        kept_boxes=_boolean(fields, "kept_boxes"),
    )


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        if name in _KNOWN or name in _IGNORED:
            continue
        if name not in _NEUTRAL:
            raise invalid(f"unknown field {name[:100]!r}", name[:100], "unknown_parameter")
        if not _NEUTRAL[name](value):
            raise invalid(f"{name} is not supported by this server", name, "unsupported_parameter")


def _messages(fields: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list of one message or more", "messages")
    if len(messages) > _MAX_MESSAGES:
        raise invalid(f"there are more than {_MAX_MESSAGES} messages", "messages")
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid("a message must be an object", f"messages[{place}]")
    return tuple(messages)


def _max_tokens(fields: Mapping[str, Any]) -> int | None:
    given = {
        name: fields[name] for name in ("max_completion_tokens", "max_tokens") if name in fields
    }
    for name, value in given.items():
        if not _is_integer(value) or value < 1:
            raise invalid(f"{name} must be a whole number, 1 or more", name)
    if len(set(given.values())) > 1:
        raise invalid("max_tokens and max_completion_tokens differ", "max_tokens")
    return next(iter(given.values()), None)


def _include_usage(fields: Mapping[str, Any], stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise invalid("stream_options go with stream only", "stream_options")
    if not isinstance(options, dict):
        raise invalid("stream_options must be an object", "stream_options")
    for name in options.keys() - {"include_usage", "include_obfuscation"}:
        raise invalid("unknown field", f"stream_options.{name[:100]}", "unknown_parameter")
    return _boolean(options, "include_usage")


def _stop(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    valid = isinstance(stops, list) and all(isinstance(text, str) and text for text in stops)
    if not valid or len(stops) > _MAX_STOPS or any(len(text) > _MAX_STOP_LENGTH for text in stops):
        raise invalid(f"stop must be a text, or a list of up to {_MAX_STOPS} texts", "stop")
    return tuple(stops)


def _seed(fields: Mapping[str, Any]) -> int | None:
    seed = fields.get("seed")
    if seed is None:
        return None
    if not _is_integer(seed) or not -(2**63) <= seed < 2**63:
        raise invalid("seed must be a whole number of 64 bits", "seed")
    return int(seed) % 2**64


def _keep(fields: Mapping[str, Any]) -> float | str | None:
    keep = fields.get("keep")
    if keep is None or isinstance(keep, str):
        return keep
    return _number(fields, "keep", 0.0, lambda x: 0 < x <= 1, "above 0, at most 1, or auto:C")


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise invalid(f"{name} must be text", name)
    return value


def _boolean(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"{name} must be true or false", name)
    return bool(value)


def _number(
    fields: Mapping[str, Any],
    name: str,
    default: float,
    valid: Callable[[float], bool],
    expected: str,
) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not _fits(value, valid):
        raise _out_of_range(name, expected)
    return float(value)


def _fits(value: float, valid: Callable[[float], bool]) -> bool:
    return (isinstance(value, int) or math.isfinite(value)) and valid(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _out_of_range(name: str, expected: str) -> ApiError:
    return invalid(f"{name} must be a number, {expected}", name)
