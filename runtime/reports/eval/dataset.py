"""Questions about pictures from a JSONL file: one object a line.

| field | type | meaning |
|---|---|---|
| ``image`` | string | a path relative to the file, or an http(s), file or data URL |
| ``question`` | string | what is asked |
| ``answer`` or ``answers`` | string, number, or a list of them | any of them is right |
| ``id`` | string or integer | optional, unique; default: the line number |
| ``category`` or ``type`` | string | optional, for a breakdown of the report |

Files in LLaVA's own format are read too: ``text`` is the question, without the ``<image>`` that
stands for the picture, ``question_id`` the id and ``label`` (POPE) the answer. Other fields are
left alone; empty lines do not count. A picture that is missing is no error of the file: it shows
when its turn comes, and the other questions go on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune.runtime.directory.bounded_json import parse_json, read_bounded
from divprune.runtime.errors import DatasetError, OptionError
from divprune.runtime.inputs.question_text import without_placeholder

__all__ = ["Dataset", "Sample", "load_dataset"]

_MAX_BYTES = 2**30
_URLS = ("http://", "https://", "file:", "data:")
_ALIASES = {"text": "question", "question_id": "id", "label": "answer"}
_EXAMPLE = '{"image": "cat.jpg", "question": "What is it?", "answer": "a cat"}'


@dataclass(frozen=True, slots=True)
class Sample:
    """One question; ``image`` is a path or URL that ``load_image`` takes."""

    id: str
    image: str
    question: str
    answers: tuple[str, ...]
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples in the order of the file; ``sha256`` is over the whole file."""

    path: Path
    sha256: str
    samples: tuple[Sample, ...]


def load_dataset(path: Path, limit: int | None = None) -> Dataset:
    """Read and check a data file.

    Args:
        path: The JSONL file.
        limit: Take this many samples at most; the file is checked to its end all the same.

    Raises:
        DatasetError: if the file is missing, empty, or a line is not as it should be; the
            message has the line's number.
        OptionError: for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError("--limit must be at least 1", expected="1 or more", found=limit)
    content = _read(path)
    samples: dict[str, Sample] = {}
    for number, line in enumerate(_decode(path, content).split("\n"), 1):
        if line.strip():
            sample = _parse(line, path, number)
            if sample.id in samples:
                raise _bad_line(path, number, "every id once", f"{sample.id!r} again")
            samples[sample.id] = sample
    if not samples:
        raise DatasetError(f"{path} has no samples", expected=_EXAMPLE, found="an empty file")
    return Dataset(path, hashlib.sha256(content).hexdigest(), tuple(samples.values())[:limit])


def _read(path: Path) -> bytes:
    return read_bounded(path, _MAX_BYTES, error=DatasetError)


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise _bad_line(path, number, "UTF-8", error) from error


def _parse(line: str, path: Path, number: int) -> Sample:
    try:
        fields = parse_json(line)
    except ValueError as error:
        raise _bad_line(path, number, f"one JSON object, such as {_EXAMPLE}", error) from error
    if not isinstance(fields, dict):
        raise _bad_line(path, number, f"one JSON object, such as {_EXAMPLE}", line[:60])
    fields = {_ALIASES[key]: fields[key] for key in _ALIASES if key in fields} | fields
    image = _text(fields, "image", path, number)
    if not image.lower().startswith(_URLS):
        image = str(path.resolve().parent / image)
    category = fields.get("category", fields.get("type"))
    question = _text(fields, "question", path, number)
    return Sample(
        id=_id(fields.get("id", number), path, number),
        image=image,
        question=without_placeholder(question),
        answers=_answers(fields, path, number),
        category=None if category is None else str(category),
    )


def _text(fields: dict[str, Any], name: str, path: Path, number: int) -> str:
    value = fields.get(name)
    if isinstance(value, str) and value.strip():
        return value
    found = "no such field" if name not in fields else repr(value)
    raise _bad_line(path, number, f'"{name}" with text in it', found)


def _id(value: object, path: Path, number: int) -> str:
    if isinstance(value, str) or type(value) is int:
        return str(value)
    raise _bad_line(path, number, '"id", a string or an integer', repr(value))


def _answers(fields: dict[str, Any], path: Path, number: int) -> tuple[str, ...]:
    expected = '"answer" (a string or number) or "answers" (a list of them, not empty)'
    if ("answer" in fields) == ("answers" in fields):
        found = "both of them" if "answer" in fields else "neither of them"
        raise _bad_line(path, number, expected, found)
    value = fields["answer"] if "answer" in fields else fields["answers"]
    values = value if isinstance(value, list) else [value]
    texts = [_plain(item) if type(item) in (str, int, float) else None for item in values]
    if not texts or None in texts:
        raise _bad_line(path, number, expected, repr(value))
    return tuple(text for text in texts if text is not None)


def _plain(value: str | float) -> str | None:
    """As people write it: 3.0 is what a table program makes of 3; None for what is no number."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return str(value)


def _bad_line(path: Path, number: int, expected: str, found: object) -> DatasetError:
    return DatasetError(
        f"{path}, line {number} is no sample",
        expected=expected,
        found=found,
        fix=f"mend line {number} of {path}",
    )
