from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.errors import DatasetError, ImageError
from divprune.runtime.inputs.image_loading import load_image
from divprune.runtime.serving.batch.table import Columns, Table, open_table

PROMPT = "What is this?"


def table(path: Path, **columns: str) -> Table:
    return open_table(path, Columns(**columns), PROMPT)


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def refused(path: Path, **columns: str) -> str:
    with pytest.raises(DatasetError) as caught:
        table(path, **columns).checked_keys()
    return str(caught.value)


def test_a_file_without_a_line_in_it_is_refused_and_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "sparse.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 36)
    assert "line 1 is too long" in refused(path)


def test_rows_of_jsonl_have_their_keys_prompts_and_paths_beside_the_file(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "a.jsonl",
        {"id": 7, "image": "x.png", "prompt": "Why?"},
        {"id": "b", "image": ["x.png", "/y.png"], "prompt": None, "more": 1},
    )
    read = table(path)
    assert read.has_keys
    assert read.checked_keys() == ["7", "b"]
    first, second = read.rows()
    assert (first.key, first.images, first.prompt) == ("7", (str(tmp_path / "x.png"),), "Why?")
    assert second.images == (str(tmp_path / "x.png"), "/y.png")
    assert second.prompt == PROMPT
    assert [row.key for row in read.rows(skip={"7"})] == ["b"]


def test_lines_are_counted_where_there_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"image": "x.png"}\n\n{"image": "y.png"}\n')
    assert table(path).checked_keys() == ["1", "3"]
    assert [row.key for row in table(path).rows()] == ["1", "3"]


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"n": 1, "file": "x.png", "q": "Why?"})
    (row,) = table(path, key="n", image="file", prompt="q").rows()
    assert (row.key, row.prompt) == ("1", "Why?")


@pytest.mark.parametrize(
    "record,problem",
    [
        ({"id": 1, "image": None}, "image holds no picture"),
        ({"id": 1, "image": []}, "image holds no picture"),
        ({"id": 1, "image": ["x.png", 3]}, "image holds no picture"),
        ({"id": 1, "image": "x.png", "prompt": 3}, "prompt is no text"),
    ],
)
def test_row_that_cannot_be_asked_says_why(tmp_path: Path, record: Any, problem: str) -> None:
    (row,) = table(lines(tmp_path / "a.jsonl", record)).rows()
    assert row.problem == problem


@pytest.mark.parametrize(
    "prompt", ["<image>\nWhy?", "<image> Why?", "Why?\n<image>", " <image>Why? ", "Why?"]
)
def test_a_prompt_may_be_spelled_as_for_llava(tmp_path: Path, prompt: str) -> None:
    (row,) = table(lines(tmp_path / "a.jsonl", {"image": "a.png", "prompt": prompt})).rows()
    assert row.prompt == "Why?"


@pytest.mark.parametrize(
    "image",
    [
        "http://example.org/a.png",
        "HTTPS://example.org/a.png",
        "file:///a/b.png",
        "data:image/png;base64,AAAA",
        "DATA:,AAAA",
    ],
)
def test_a_url_is_no_path_beside_the_file(tmp_path: Path, image: str) -> None:
    (row,) = table(lines(tmp_path / "a.jsonl", {"id": 1, "image": image})).rows()
    assert row.images == (image,)


@pytest.mark.parametrize("image", ["a\0.png", "x" * 5000, "loop/a.png", "-", "../a.png", "."])
def test_a_path_that_leads_nowhere_is_left_to_its_row(tmp_path: Path, image: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (row,) = table(lines(tmp_path / "a.jsonl", {"id": 1, "image": image})).rows()
    assert row.problem is None
    with pytest.raises(ImageError):
        load_image(row.images[0])


@pytest.mark.parametrize("key", ["null", "NaN", "[1]", '{"a": 1}', "Infinity"])
def test_what_tells_no_rows_apart_is_no_key(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": {key}, "image": "a.png"}}\n')
    if key == "Infinity":
        assert table(path).checked_keys() == ["inf"]
    else:
        assert "line 1 has no key" in refused(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "\\ud800", "image": "a.png"}',
        '{"id": 1, "image": "\\ud800.png"}',
        '{"id": 1, "image": "a.png", "prompt": "\\udfff"}',
        '{"id": 1, "image": "a.png", "more": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"id": 1' + "0" * 40 + ', "image": "a.png"}',
        '{"id": 1' + "0" * 5000 + ', "image": "a.png"}',
        '{"id": 1, "image": "a.png"',
    ],
)
def test_a_line_that_nothing_can_use_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 0, "image": "a.png"}\n' + line + "\n")
    assert "line 2: this is not JSON that can be read" in refused(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_pipe_is_no_input(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert "no file" in refused(tmp_path / name)


def test_names_of_pictures_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"\xff.png", b"a\x1b[31m.png"):
        Path(os.fsdecode(folder + b"/" + name)).write_bytes(b"x")
    read = table(tmp_path)
    assert sorted(read.checked_keys()) == ["\\udcff.png", "a\\x1b[31m.png"]
    assert all(Path(str(row.images[0])).is_file() for row in read.rows())


def test_broken_input_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 1, "image": "x"}\n{"id": 2,\n')
    assert "line 2" in refused(path)
    path.write_text('{"id": 1, "image": "x"}\n[]\n')
    assert "line 2" in refused(path)
    path.write_bytes(b"\xff\n")
    assert "cannot be read" in refused(path)
    path.write_text("")
    assert "no row" in refused(path)


def test_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"id": 1, "image": "x"}, {"id": 2, "picture": "y"})
    message = refused(path)
    assert "line 2 has no column 'image'" in message
    assert "'picture'" in message


def test_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"id": 1, "image": "x"})
    assert "no column 'question'" in refused(path, prompt="question")
    assert "no column 'name'" in refused(path, key="name")


def test_row_without_a_key_is_refused_with_its_place(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"id": 1, "image": "x"}, {"id": None, "image": "y"})
    assert "line 2 has no key" in refused(path)


def test_same_key_twice_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"id": 1, "image": "x"}, {"id": "1", "image": "y"})
    assert "'1' twice" in refused(path)


def test_pictures_below_a_folder_are_rows_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "deep/a.jpg", "readme.txt"):
        (tmp_path / name).write_bytes(b"x")
    read = table(tmp_path)
    assert read.checked_keys() == ["b.PNG", "deep/a.jpg"]
    assert next(read.rows()).images == (str(tmp_path / "b.PNG"),)


@pytest.mark.parametrize("name", ["none.jsonl", "a.csv", "empty"])
def test_what_is_no_input_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_text("id\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError):
        table(tmp_path / name).checked_keys()


def test_parquet_gives_paths_bytes_and_pictures_of_datasets(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = {"id": ["a", "b"], "image": [b"1", b"2"]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "one.parquet")
    pictures = [{"bytes": b"3", "path": None}, {"bytes": None, "path": "x.png"}]
    parquet.write_table(
        pyarrow.table({"id": ["c", "d"], "image": pictures}), tmp_path / "two.parquet"
    )
    read = table(tmp_path)
    assert read.checked_keys() == ["a", "b", "c", "d"]
    assert [row.images[0] for row in read.rows(skip={"a"})] == [
        b"2",
        b"3",
        str(tmp_path / "x.png"),
    ]
    for column in ("key", "image", "prompt"):
        assert "has no column 'file'" in refused(tmp_path, **{column: "file"})


def test_rows_of_parquet_are_counted_where_there_is_no_key(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("a", "b"):
        parquet.write_table(pyarrow.table({"image": [name, name]}), tmp_path / f"{name}.parquet")
    assert table(tmp_path).checked_keys() == ["0", "1", "2", "3"]
    assert [row.key for row in table(tmp_path).rows(skip={"1"})] == ["0", "2", "3"]


@pytest.fixture
def parquet_file(tmp_path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": ["a", "b"], "image": ["x", "y"]}), path)
    return path


def test_unreadable_parquet_is_refused(parquet_file: Path) -> None:
    whole = parquet_file.read_bytes()
    for data in (b"", b"PAR1 not really", whole[: len(whole) // 2]):
        parquet_file.write_bytes(data)
        assert "cannot be read as Parquet" in refused(parquet_file)


def test_parquet_whose_pages_are_damaged_is_refused(parquet_file: Path) -> None:
    data = bytearray(parquet_file.read_bytes())
    data[4:40] = b"\xff" * 36
    parquet_file.write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.parquet cannot be read as Parquet"):
        list(table(parquet_file).rows())
    assert "cannot be read as Parquet" in refused(parquet_file)


@pytest.mark.parametrize("kind", ["float64", "timestamp", "far away"])
def test_keys_of_parquet_that_python_cannot_hold_are_refused(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    keys = {
        "float64": pyarrow.array([1.0, float("nan")]),
        "timestamp": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "far away": pyarrow.array([10**18, 2], pyarrow.timestamp("us")),
    }[kind]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": keys, "image": ["a.png", "b.png"]}), path)
    if kind == "timestamp" and importlib.util.find_spec("pandas"):
        assert len(table(path).checked_keys()) == 2
    else:
        assert "no key" in (message := refused(path)) or "cannot be read as Parquet" in message


def test_a_folder_that_is_named_like_a_table_is_looked_into(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "rows.parquet"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"id": ["a"], "image": ["x"]}), folder / "0.parquet")
    assert table(tmp_path).checked_keys() == table(folder).checked_keys() == ["a"]
