"""The rows of an input: JSONL, Parquet, or a folder of pictures.

Every row has a key. Where the input has none, its place in the input is the key, and the input must
then be the same one when a run goes on.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divprune.runtime.directory.bounded_json import parse_json
from divprune.runtime.errors import BackendError, DatasetError, printable
from divprune.runtime.inputs.image_sources import scheme_of
from divprune.runtime.inputs.question_text import without_placeholder

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Columns", "Row", "Table", "import_pyarrow", "open_table"]

_PICTURES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Columns:
    """Names of the columns.

    Attributes:
        key: What tells rows apart; may be missing under its usual name.
        image: Path (relative to the input's folder), URL (http, https, file, data), bytes, or a
            list of them.
        prompt: The question of a row; may be missing under its usual name, where there is one
            for all.
    """

    key: str = "id"
    image: str = "image"
    prompt: str = "prompt"

    @property
    def required(self) -> tuple[str, ...]:
        """What every row must have: nobody gives a column another name that is not there."""
        usual = Columns()
        named = ((self.key, usual.key), (self.prompt, usual.prompt))
        return (self.image, *(name for name, default in named if name != default))


@dataclass(frozen=True)
class Row:
    """One question.

    Attributes:
        key: Tells rows apart.
        images: Paths, or bytes of picture files.
        prompt: The question.
        problem: Why this row cannot be asked; None if it can.
    """

    key: str
    images: tuple[str | bytes, ...]
    prompt: str
    problem: str | None = None


class Table(ABC):
    """An input that can be read several times.

    Args:
        path: The file or folder.
        columns: Names of the columns.
        prompt: The question of all rows without their own.
    """

    def __init__(self, path: Path, columns: Columns, prompt: str) -> None:
        self.path = path
        self.columns = columns
        self.prompt = prompt

    @cached_property
    def _folder(self) -> Path:
        """What relative paths of pictures begin at."""
        return (self.path if self.path.is_dir() else self.path.parent).resolve()

    @property
    @abstractmethod
    def has_keys(self) -> bool:
        """Rows have keys of their own; otherwise their places are the keys."""

    @abstractmethod
    def keys(self) -> Iterator[str]:
        """The key of every row, in order; checks what can be checked without pictures."""

    @abstractmethod
    def rows(self, skip: Collection[str] = ()) -> Iterator[Row]:
        """The rows whose keys are not among ``skip``."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The files that make up the table."""

    def checked_keys(self) -> list[str]:
        """All keys.

        Raises:
            DatasetError: if two rows have the same, or there is no row.
        """
        keys = list(self.keys())
        if not keys:
            raise DatasetError(f"{self.path} holds no row", expected="one or more", found="none")
        if len(set(keys)) < len(keys):
            twice, _ = Counter(keys).most_common(1)[0]
            raise DatasetError(
                "two rows have the same key",
                expected=f"another value of {self.columns.key!r} in every row",
                found=f"{twice!r} twice",
                fix="--key-column COLUMN names the column that tells rows apart",
            )
        return keys

    def _key(self, value: object, where: str) -> str:
        # NaN is what table programs make of a missing number.
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or isinstance(value, (Mapping, list)):
            raise DatasetError(
                f"{where} has no key",
                expected=f"text or a number as {self.columns.key!r} in every row",
                found="null" if value is None else value,
                fix="--key-column COLUMN names the column that tells rows apart",
            )
        return str(value)

    def _row(self, key: str, record: Mapping[str, Any]) -> Row:
        value, prompt = record.get(self.columns.image), record.get(self.columns.prompt)
        if prompt is None:
            prompt = self.prompt
        if not isinstance(prompt, str):
            return Row(key, (), "", f"{self.columns.prompt} is no text")
        prompt = without_placeholder(prompt)
        values = value if isinstance(value, (list, tuple)) else [value]
        images = [self._image(each) for each in values]
        if not images or None in images:
            return Row(key, (), prompt, f"{self.columns.image} holds no picture")
        return Row(key, tuple(image for image in images if image is not None), prompt)

    def _image(self, value: object) -> str | bytes | None:
        if isinstance(value, Mapping):  # as Hugging Face's datasets store pictures
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value:
            return None
        if scheme_of(value) is not None:
            return value
        return str(self._folder / value)


class JsonLines(Table):
    """One JSON object a line."""

    @property
    def files(self) -> list[Path]:
        """The file."""
        return [self.path]

    @property
    def has_keys(self) -> bool:
        """Decided by the first row."""
        return any(self.columns.key in record for _, record in _first(self._records()))

    def keys(self) -> Iterator[str]:
        """Every line is parsed."""
        keyed = self.has_keys
        required = {*self.columns.required, *((self.columns.key,) if keyed else ())}
        for number, record in self._records():
            where = f"{self.path}, line {number}"
            for column in sorted(required):
                if column not in record:
                    raise _missing_column(where, column, sorted(record))
            yield self._key(record[self.columns.key], where) if keyed else str(number)

    def rows(self, skip: Collection[str] = ()) -> Iterator[Row]:
        """Parsed as they are asked for."""
        keyed = self.has_keys
        for number, record in self._records():
            key = str(record[self.columns.key]) if keyed else str(number)
            if key not in skip:
                yield self._row(key, record)

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with self.path.open(encoding="utf-8-sig") as file:
                for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), 1):
                    if len(line) == _LONGEST_LINE:
                        raise DatasetError(
                            f"{self.path}, line {number} is too long",
                            expected=f"less than {_LONGEST_LINE >> 20} Mi characters",
                            found="more",
                        )
                    if line.strip():
                        yield number, self._parse(line, number)
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.path} cannot be read", found=error) from error

    def _parse(self, line: str, number: int) -> dict[str, Any]:
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DatasetError(
                f"{self.path}, line {number}: this is not JSON that can be read", found=error
            ) from error
        if not isinstance(record, dict):
            raise DatasetError(
                f"{self.path}, line {number}: this is no row",
                expected='an object such as {"id": 1, "image": "a.jpg"}',
                found=line[:60],
            )
        return record


class Parquet(Table):
    """A Parquet file, or a folder of them; needs pyarrow."""

    @property
    def files(self) -> list[Path]:
        """The file, or all below the folder in the order of their names."""
        if not self.path.is_dir():
            return [self.path]
        return sorted(file for file in self.path.rglob("*.parquet") if file.is_file())

    @property
    def has_keys(self) -> bool:
        """Decided by the first file."""
        return self.columns.key in self._names(self.files[0])

    def keys(self) -> Iterator[str]:
        """Only the column of keys is read, and the names of the others."""
        keyed, number = self.has_keys, 0
        required = {*self.columns.required, *((self.columns.key,) if keyed else ())}
        for file in self.files:
            names = self._names(file)
            for column in sorted(required):
                if column not in names:
                    raise _missing_column(str(file), column, names)
            with _reading(file) as pyarrow:
                if keyed:
                    column = pyarrow.parquet.read_table(file, columns=[self.columns.key])[0]
                    for place, value in enumerate(column.to_pylist(), start=1):
                        yield self._key(value, f"{file}, row {place}")
                else:
                    count = pyarrow.parquet.read_metadata(file).num_rows
                    yield from map(str, range(number, number + count))
                    number += count

    def rows(self, skip: Collection[str] = ()) -> Iterator[Row]:
        """Read a few at a time: pictures may stand in them."""
        keyed, number = self.has_keys, 0
        names = self.columns
        for file in self.files:
            wanted = [n for n in (names.key, names.image, names.prompt) if n in self._names(file)]
            with _reading(file) as pyarrow:
                opened = pyarrow.parquet.ParquetFile(file)
                for batch in opened.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                    for record in batch.to_pylist():
                        key = str(record[names.key]) if keyed else str(number)
                        number += 1
                        if key not in skip:
                            yield self._row(key, record)

    def _names(self, file: Path) -> list[str]:
        with _reading(file) as pyarrow:
            return list(pyarrow.parquet.read_schema(file).names)


@contextmanager
def _reading(file: Path) -> Iterator[ModuleType]:
    """Pyarrow, whose errors are about ``file``."""
    pyarrow = import_pyarrow()
    try:
        yield pyarrow
    # Values that Python has no type for raise errors of Python's own.
    except (OSError, ArithmeticError, ValueError, pyarrow.ArrowException) as error:
        raise DatasetError(
            f"{file} cannot be read as Parquet", found=str(error).partition("\n")[0]
        ) from error


class Pictures(Table):
    """All pictures below a folder; a picture's path in it is its key."""

    @property
    def has_keys(self) -> bool:
        """The paths."""
        return True

    @property
    def files(self) -> list[Path]:
        """The pictures in the order of their paths."""
        return sorted(path for path in self.path.rglob("*") if path.suffix.lower() in _PICTURES)

    def keys(self) -> Iterator[str]:
        """Paths with forward slashes; bytes that are no text are escaped."""
        for file in self.files:
            yield printable(file.relative_to(self.path).as_posix())

    def rows(self, skip: Collection[str] = ()) -> Iterator[Row]:
        """One for each picture."""
        for key, file in zip(self.keys(), self.files, strict=True):
            if key not in skip:
                yield Row(key, (str(self._folder / file.relative_to(self.path)),), self.prompt)


def open_table(path: Path, columns: Columns, prompt: str) -> Table:
    """The table at a path.

    Raises:
        DatasetError: if nothing is there that can be read.
        BackendError: if pyarrow is needed and missing.
    """
    if not path.exists():
        raise DatasetError(f"{path} does not exist", expected=_EXPECTED)
    if path.is_dir():
        has_tables = any(file.is_file() for file in path.rglob("*.parquet"))
        kind: type[Table] = Parquet if has_tables else Pictures
    elif not path.is_file():
        raise DatasetError(f"{path} is no file", expected=_EXPECTED, found="a pipe or a device")
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        kind = JsonLines
    elif path.suffix.lower() == ".parquet":
        kind = Parquet
    else:
        raise DatasetError(
            f"{path} is no input", expected=_EXPECTED, found=path.suffix or "no ending"
        )
    if kind is Parquet:
        import_pyarrow()
    return kind(path, columns, prompt)


_LONGEST_LINE = 64 << 20  # a picture as a data URI is part of it
_EXPECTED = "a .jsonl or .parquet file, a folder of .parquet files, or a folder of pictures"


def import_pyarrow() -> ModuleType:
    """Pyarrow with its module for Parquet.

    Raises:
        BackendError: naming the command that installs it.
    """
    try:
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise BackendError(
            "Parquet needs pyarrow", found=error, fix="pip install 'divprune-edge[batch]'"
        ) from error


def _missing_column(where: str, column: str, found: list[str]) -> DatasetError:
    return DatasetError(
        f"{where} has no column {column!r}",
        expected=column,
        found=", ".join(map(repr, found)) or "no column",
        fix="--image-column, --key-column and --prompt-column name the columns",
    )


def _first(records: Iterator[Any]) -> list[Any]:
    return [record for record, _ in zip(records, range(1), strict=False)]
