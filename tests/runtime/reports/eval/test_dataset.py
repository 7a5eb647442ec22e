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
    with pytest.raises(DatasetError, match="is missing"):
        load_dataset(tmp_path / "nothing.jsonl")
    with pytest.raises(OptionError, match="--limit"):
        load_dataset(tmp_path / "nothing.jsonl", limit=0)


# --- what other programs write


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ("3.0", "3"),
        ("-0.0", "0"),
        ("2.5", "2.5"),
        ("1e3", "1000"),
        ("1e20", "1" + "0" * 20),
        ("7", "7"),
        ('"3.0"', "3.0"),
    ],
)
def test_integral_numbers_are_read_as_integers(tmp_path, stored, read):
    file = tmp_path / "data.jsonl"
    file.write_text(f'{{"image": "a.png", "question": "?", "answer": {stored}}}\n')
    assert load_dataset(file).samples[0].answers == (read,)


@pytest.mark.parametrize(
    "stored", ["NaN", "Infinity", "-Infinity", "null", "true", "[NaN]", "[]", "1e999", "{}"]
)
def test_what_is_no_answer_is_refused_with_its_line(tmp_path, stored):
    file = tmp_path / "data.jsonl"
    good = '{"image": "a.png", "question": "?", "answer": "a"}\n'
    file.write_text(good + f'{{"image": "a.png", "question": "?", "answer": {stored}}}\n')
    with pytest.raises(DatasetError, match="line 2"):
        load_dataset(file)


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "\\ud800", "image": "a.png", "question": "?", "answer": "b"}',
        '{"image": "\\ud800.png", "question": "?", "answer": "b"}',
        '{"image": "a.png", "question": "\\udfff", "answer": "b"}',
        '{"image": "a.png", "question": "?", "answer": ["b", "\\ud812"]}',
        '{"image": "a.png", "question": "?", "answer": 1' + "0" * 30 + "}",
        '{"a":' * 100_000,
    ],
)
def test_what_cannot_be_written_again_is_refused_with_its_line(tmp_path, line):
    file = tmp_path / "data.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(DatasetError, match="line 1"):
        load_dataset(file)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("What is it?\n<image>", "What is it?"),
        ("<image> What is it?", "What is it?"),
        ("What is it?", "What is it?"),
        ("Is <image> a tag?", "Is <image> a tag?"),
    ],
)
def test_questions_in_the_format_of_llava_are_read(tmp_path, text, question):
    file = tmp_path / "data.jsonl"
    line = {"question_id": 7, "image": "a.png", "text": text, "label": "no"}
    file.write_text(json.dumps(line) + "\n")
    (sample,) = load_dataset(file).samples
    assert (sample.id, sample.question, sample.answers) == ("7", question, ("no",))


@pytest.mark.parametrize("image", ["https://a/b.png", "data:image/png;base64,AA", "FILE:///a.png"])
def test_a_url_is_not_a_path(tmp_path, image):
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"image": image, "question": "?", "answer": "a"}))
    assert load_dataset(file).samples[0].image == image


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_is_no_file_of_questions(path):
    with pytest.raises(DatasetError, match="no plain file"):
        load_dataset(Path(path))
