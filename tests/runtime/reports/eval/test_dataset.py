from __future__ import annotations

import json
from pathlib import Path

import pytest

from divprune.runtime.errors import DatasetError, OptionError
from divprune.runtime.reports.eval.dataset import Sample, load_dataset

GOOD = {"image": "a.png", "question": "What?", "answer": "red"}


def write(path: Path, *lines: object) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_samples_are_read_in_the_order_of_the_file(tmp_path):
    data = write(
        tmp_path / "data.jsonl",
        GOOD,
        "",
        {"id": "x", "image": "https://e.org/b.png", "question": "How many?", "answers": [2, "two"],
         "category": "count", "source": "elsewhere"},
    )  # fmt: skip
    dataset = load_dataset(data)
    assert dataset.samples == (
        Sample("1", str(tmp_path / "a.png"), "What?", ("red",)),
        Sample("x", "https://e.org/b.png", "How many?", ("2", "two"), "count"),
    )
    assert load_dataset(data, limit=1).samples == dataset.samples[:1]
    assert load_dataset(data, limit=1).sha256 == dataset.sha256


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png", ', "one JSON object"),
        ("[1]", "one JSON object"),
        ({"question": "What?", "answer": "red"}, '"image" with text'),
        (GOOD | {"question": " "}, '"question" with text'),
        ({"image": "a.png", "question": "What?"}, "neither of them"),
        (GOOD | {"answers": ["red"]}, "both of them"),
        (GOOD | {"answer": None}, "None"),
        (GOOD | {"answer": []}, "not empty"),
        (GOOD | {"id": 1}, "'1' again"),
        (GOOD | {"id": 1.5}, "a string or an integer"),
    ],
)
def test_a_line_that_is_no_sample_is_named_by_its_number(tmp_path, line, message):
    data = write(tmp_path / "data.jsonl", GOOD, "", line)
    with pytest.raises(DatasetError, match=r"line 3 is no sample") as caught:
        load_dataset(data)
    assert message in str(caught.value)


def test_a_bad_line_beyond_the_limit_shows_all_the_same(tmp_path):
    with pytest.raises(DatasetError, match="line 2"):
        load_dataset(write(tmp_path / "data.jsonl", GOOD, "nonsense"), limit=1)


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"image": "\xff"}\n')
    with pytest.raises(DatasetError, match="line 2"):
        load_dataset(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(DatasetError, match="has no samples"):
        load_dataset(tmp_path / "data.jsonl")


def test_a_file_that_is_missing_and_a_limit_of_zero_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read"):
        load_dataset(tmp_path / "nothing.jsonl")
    with pytest.raises(OptionError, match="--limit"):
        load_dataset(tmp_path / "nothing.jsonl", limit=0)
