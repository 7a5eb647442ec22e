"""Damage to documents as the world does it: other values and types, sizes, and bytes."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator
from random import Random
from typing import Any

__all__ = ["damage_header", "damage_json", "damage_template", "damage_text"]

_VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, "", "x", "../../x", "\x1b[31m", "a\ud800", "None", "0"),
    *(-1, 0, 1, 2, 3, 7, 64, 2**15, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 10**30, -(2**63)),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), 1.5),
    *([None], [0], [[]], [{}], {"": 0}, {"a": {"a": None}}, ["x"] * 50, "y" * 100_000),
)
_WHOLE = ("", " ", "[]", "null", "0", '"text"', "{", "{}", "\0", "[" * 100_000, '{"a":' * 100_000)
_SNIPPETS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{{ 'a' * 10**9 }}",
    "{{ 'x'|center(10**9) }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages[0]['content'] }}",
    "{{ raise_exception('no') }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ [1]|map('string')|join('x')|replace('1', 'y' * 9999999) }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ 'a'|indent(10**9) }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ ('a' * 1000000)|replace('a', 'b' * 1000) }}",
    "{% set x = namespace(a=[]) %}{% for i in range(999) %}{% set x.a = x.a + [x.a] %}{% endfor %}",
    "{{ messages|tojson(indent=10**8) }}",
    "{{ 9**9**9**9 }}",
    "{% include 'x' %}",
    "<image>",
    "{{ undefined.attribute }}",
    "{% generation %}",
    "\x1b]0;title\x07",
)


def damage_json(value: Any, random: Random) -> bytes:
    """The text of a JSON document in which one to three things are not as they were."""
    if random.random() < 0.08:
        return random.choice(_WHOLE).encode()
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if places:
            _change(*random.choice(places), random)
    text = json.dumps(value, ensure_ascii=random.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    return damage_text(data, random) if random.random() < 0.1 else data


def damage_text(data: bytes, random: Random) -> bytes:
    """Bytes that were cut, doubled or flipped."""
    if not data:
        return b"\xff"
    at, length = random.randrange(len(data)), random.choice((1, 3, 50))
    kind = random.randrange(4)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + data[at : at + length] * 2 + data[at + length :]
    return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]


def damage_template(source: str, random: Random) -> bytes:
    """A template with something foreign in it."""
    if random.random() < 0.2:
        return damage_text(source.encode(), random)
    at = random.choice((0, len(source), random.randrange(len(source) + 1)))
    return (source[:at] + random.choice(_SNIPPETS) + source[at:]).encode()


def damage_header(data: bytes, random: Random) -> bytes:
    """A safetensors file whose header or length was changed."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = random.random()
    if kind < 0.15:
        return struct.pack("<Q", random.choice((0, 1, length + 1, 2**40, 2**63))) + data[8:]
    if kind < 0.25:
        return damage_text(data, random)
    changed = damage_json(header, random)
    return struct.pack("<Q", len(changed)) + changed + rest


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key that it has."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            keys: list[Any] = list(item)
        else:
            keys = list(range(len(item))) if isinstance(item, list) else []
        for key in keys:
            yield item, key
            waiting.append(item[key])


def _change(container: Any, key: Any, random: Random) -> None:
    old, kind = container[key], random.random()
    if kind < 0.12:
        del container[key]
    elif kind < 0.2:
        container[key] = [old]
    elif kind < 0.35 and type(old) in (int, float):
        container[key] = random.choice(
            (old + 1, old - 1, -old, old * 1000, old * 10**12, float(old))
        )
    elif kind < 0.4 and isinstance(old, str):
        container[key] = old + random.choice(("\ud800", "\0", " ", "x" * 5000))
    elif kind < 0.45 and isinstance(container, dict):
        container[random.choice(("", "\ud800", "extra", "type"))] = old
    else:
        container[key] = copy.deepcopy(random.choice(_VALUES))
