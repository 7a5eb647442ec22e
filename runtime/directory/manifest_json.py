"""Frozen dataclasses from JSON and back, strictly: nothing is guessed, converted or ignored.

Every problem is a `FieldError` that names the field by its dotted path from the top of the
document, such as ``selector.num_kept`` or ``graphs.llm.inputs[0].dtype``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from divprune.runtime.directory.bounded_json import require_usable
from divprune.runtime.errors import EngineDirectoryError

__all__ = ["RE_EXPORT", "FieldError", "checksum", "dump", "parse", "read_dataclass"]

RE_EXPORT = "export it again: divprune-export --model MODEL --keep KEEP --output ENGINE_DIR --force"

_T = TypeVar("_T")
_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


class FieldError(EngineDirectoryError):
    """A field of a JSON document is missing, unknown, or has a type or value it cannot have."""

    def __init__(
        self,
        field: str,
        problem: str,
        *,
        expected: object,
        found: object,
        fix: str | None = RE_EXPORT,
    ) -> None:
        where = f"manifest.json: {field}" if field else "manifest.json"
        super().__init__(f"{where} {problem}", expected=expected, found=found, fix=fix)
        self.field = field
        self.problem = problem

    def inside(self, prefix: str) -> FieldError:
        """The same error, seen from the object that holds this one in field ``prefix``."""
        field = _join(prefix, self.field)
        return FieldError(
            field, self.problem, expected=self.expected, found=self.found, fix=self.fix
        )


def dump(record: Any) -> str:
    """A dataclass, or what is plain, as JSON: sorted keys, two spaces, ASCII, a final newline."""
    plain = record if isinstance(record, dict) else dataclasses.asdict(record)
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"


def checksum(fields: Mapping[str, Any]) -> str:
    """SHA-256 of what parsed JSON says, however it is laid out, less its field ``checksum``."""
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def parse(text: str) -> dict[str, Any]:
    """The object that ``text`` holds.

    Raises:
        EngineDirectoryError: if it is not JSON (RFC 8259, so no NaN), repeats a key, holds what
            nothing can use, or is not an object.
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)
        require_usable(value)
    except (ValueError, RecursionError) as error:
        raise FieldError("", "is not valid JSON", expected="JSON", found=error) from error
    if not isinstance(value, dict):
        raise FieldError("", "is not an object", expected="an object", found=_describe(value))
    return value


def read_dataclass(cls: type[_T], value: object, path: str = "") -> _T:
    """Build dataclass ``cls`` from parsed JSON; ``path`` is where in the document it stands.

    Raises:
        FieldError: for a missing or unknown field, a wrong type, or whatever the
            dataclass refuses itself.
    """
    fields = _expect(value, dict, path)
    hints = get_type_hints(cls)
    _check_names(fields, hints, path)
    values = {name: _read(hint, fields[name], _join(path, name)) for name, hint in hints.items()}
    try:
        return cls(**values)
    except FieldError as error:
        raise error.inside(path) from None


def _check_names(found: Collection[str], expected: Collection[str], path: str) -> None:
    for name in found:
        if name not in expected:
            known = f"one of {', '.join(expected)}"
            raise FieldError(_join(path, name), "is unknown", expected=known, found=repr(name))
    for name in expected:
        if name not in found:
            raise FieldError(_join(path, name), "is missing", expected="a value", found="nothing")


def _read(hint: Any, value: object, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return read_dataclass(hint, value, path)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value, path)
    if origin is tuple:
        items = _expect(value, list, path)
        return tuple(_read(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(items))
    if origin is dict:
        entries = _expect(value, dict, path)
        return {key: _read(arguments[1], item, _join(path, key)) for key, item in entries.items()}
    return _expect(value, hint, path)


def _read_union(members: tuple[Any, ...], value: object, path: str) -> object:
    for member in members:
        if dataclasses.is_dataclass(member) and type(value) is dict:
            return _read(member, value, path)
        if type(value) is member or (member is float and type(value) is int):
            return _expect(value, member, path)
    expected = " or ".join(_NAMES.get(member, "an object") for member in members)
    raise FieldError(path, "has the wrong type", expected=expected, found=_describe(value))


def _expect(value: object, kind: Any, path: str) -> Any:
    if kind is float and type(value) is int:
        return _to_float(value, path)
    if type(value) is kind and not (isinstance(value, float) and math.isinf(value)):
        return value
    raise FieldError(path, "has the wrong type", expected=_NAMES[kind], found=_describe(value))


def _to_float(value: int, path: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise FieldError(path, "is too large", expected="a number", found=value) from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = sorted({key for key in keys if keys.count(key) > 1})
        raise ValueError(f"repeated keys: {', '.join(repeated)}")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _describe(value: object) -> str:
    return f"{_NAMES[type(value)]}: {json.dumps(value)[:60]}"
