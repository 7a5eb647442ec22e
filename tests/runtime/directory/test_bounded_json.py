"""JSON that others wrote is read within bounds."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from divprune.runtime.directory.bounded_json import parse_json, read_json_object
from divprune.runtime.errors import CheckpointError, EngineDirectoryError

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)
VALUES = st.recursive(
    SCALARS | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=20,
)


@given(VALUES)
def test_ordinary_json_is_what_the_library_reads(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"a":' * 100_000, "deep"),
        (b"[" * 100_000, "deep"),
        (b"[" * 200 + b"]" * 200, "deep"),
        (b'{"a": {"b": 1' + b"0" * 40 + b"}}", r"a\.b is an integer"),
        (b'{"a": [0, -9' + b"0" * 20 + b"]}", r"a\.1 is an integer"),
        (b"1" * 5000, "digits|integer"),
        (b'{"a": "\\ud800"}', "a is text with half a character"),
        (b'{"\\udfff": 1}', "key .* half a character"),
        (b"\xff\xfe", "UTF-8"),
        (b"", "Expecting value"),
        (b'{"a": 1', "Expecting|delimiter"),
        (b"\0", "Expecting value"),
    ],
)
def test_what_nothing_can_use_is_refused_with_its_place(data, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(data)


def test_byte_order_mark_is_skipped():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"[]", "a list"), (b"null", "null"), (b'"a"', "text"), (b"3", "a number"), (b"true", "true")],
)
def test_a_file_that_holds_no_object_is_named(tmp_path, data, found):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(EngineDirectoryError, match=rf"is not a JSON object[\s\S]*{found}"):
        read_json_object(tmp_path / "config.json")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    file = tmp_path / "config.json"
    with file.open("wb") as stream:
        stream.truncate(50 * 10**9)
    with pytest.raises(EngineDirectoryError, match="too large"):
        read_json_object(file, max_bytes=1000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(EngineDirectoryError, match="no plain file"):
        read_json_object(tmp_path / "config.json")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/", "missing.json", "a\0b"])
def test_what_is_no_file_is_refused_with_the_error_asked_for(tmp_path, path):
    with pytest.raises(CheckpointError):
        read_json_object(tmp_path / path, error=CheckpointError)
