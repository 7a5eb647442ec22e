"""The header of a safetensors file is checked against the file."""

from __future__ import annotations

import json
import struct

import pytest

from divprune.runtime.directory.safetensors_header import read_safetensors_header


def write(tmp_path, header, data=b""):
    file = tmp_path / "a.safetensors"
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return file


def tensor(begin, end, shape, dtype="F16"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_found_in_the_order_in_which_they_lie(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "b": tensor(4, 8, [2]), "a": tensor(0, 4, [1, 2])}
    file = write(tmp_path, {**header, "none": tensor(4, 4, [0, 7])}, bytes(8))
    entries = read_safetensors_header(file)
    assert list(entries) == ["a", "none", "b"]
    assert entries["b"].offset == file.stat().st_size - 4
    assert entries["a"].shape == (1, 2)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "I8", "BOOL", "F8_E4M3", "F4"])
def test_every_type_has_its_length(tmp_path, dtype):
    size = {"F32": 16, "BF16": 8, "I8": 4, "BOOL": 4, "F8_E4M3": 4, "F4": 2}[dtype]
    file = write(tmp_path, {"a": tensor(0, size, [4], dtype)}, bytes(size))
    assert read_safetensors_header(file)["a"].num_bytes == size


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": tensor(0, 4, [2]), "b": tensor(2, 6, [2])}, bytes(6), "shares bytes"),
        ({"a": tensor(0, 4, [2]), "b": tensor(0, 4, [2])}, bytes(4), "shares bytes"),
        ({"a": tensor(2, 6, [2])}, bytes(6), "gap"),
        ({"a": tensor(0, 4, [2])}, bytes(5), "of a file of"),
        ({"a": tensor(0, 4, [2])}, bytes(3), "of a file of"),
        ({"a": tensor(0, 4, [3])}, bytes(4), "not 6"),
        ({"a": tensor(0, 4, [2], "F17")}, bytes(4), "is no tensor"),
        ({"a": tensor(4, 0, [2])}, bytes(4), "bytes for"),
        ({"a": tensor(0, 4, [-1, -2])}, bytes(4), "the shape"),
        ({"a": tensor(0, 4, [2.0])}, bytes(4), "the shape"),
        ({"a": tensor(0, 4, "2")}, bytes(4), "the shape"),
        ({"a": {"dtype": "F16", "shape": [2]}}, bytes(4), "is no tensor"),
        ({"a": [1]}, bytes(4), "is no tensor"),
        ({"a": None}, b"", "is no tensor"),
        ([], b"", "no object"),
        (b'{"a":' * 100_000, b"", "deep"),
        (b"{", b"", "a header of 1"),
        (b'{"a": 1' + b"0" * 30 + b"}", b"", "64 bits"),
    ],
)
def test_header_and_data_that_do_not_fit_are_refused(tmp_path, header, data, reason):
    with pytest.raises(ValueError, match=reason):
        read_safetensors_header(write(tmp_path, header, data))


@pytest.mark.parametrize("length", [0, 1, 2**40, 2**64 - 1])
def test_header_of_an_impossible_length_is_refused(tmp_path, length):
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ValueError, match="a header of"):
        read_safetensors_header(file)


def test_a_file_that_the_library_reads_is_read_the_same(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    np = pytest.importorskip("numpy")
    numpy.save_file(
        {
            "b": np.zeros((3, 5), np.float16),
            "a": np.zeros(7, np.int64),
            "c": np.zeros((0, 2), "u1"),
        },
        tmp_path / "a.safetensors",
    )
    entries = read_safetensors_header(tmp_path / "a.safetensors")
    assert {name: entry.shape for name, entry in entries.items()} == {
        "a": (7,),
        "b": (3, 5),
        "c": (0, 2),
    }
