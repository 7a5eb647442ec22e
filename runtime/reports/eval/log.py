"""The log of an evaluation: a line for every answer, so that a killed run can go on.

The first line says what the answers belong to: engine, data, backend and options. A log is only
continued by a run that has the same. Each answer is one line, flushed when it is made; a last
line that was cut short by a kill is dropped and its question asked again. So is one that failed:
its picture may have been put in place since.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from divprune.runtime.directory.bounded_json import parse_json
from divprune.runtime.directory.keep import AutoKeep, Keep
from divprune.runtime.directory.manifest_json import FieldError, read_dataclass
from divprune.runtime.errors import OptionError

__all__ = ["LOG_VERSION", "Record", "SampleLog", "Times", "keep_in_log"]

LOG_VERSION = 2
_MAX_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds of one answer; vision is measured once a picture and counted in each ttft."""

    vision: float
    prefill: float
    ttft: float
    decode_per_token: float | None


@dataclass(frozen=True, slots=True)
class Record:
    """One answer, or why there is none.

    Attributes:
        id: The sample's.
        keep: Fraction asked for, or the similarity to reach as ``auto:C``; with the id it names
            the record.
        num_image_tokens: N of the picture, before pruning.
        num_kept: Tokens kept of them.
        text: The answer; None where there is an error.
        error: What went wrong; None where there is an answer.
        text_tokens: Tokens of the prompt around the picture.
        prompt_tokens: Rows that prefill processed.
        new_tokens: Length of the answer.
        finish_reason: ``stop`` or ``length``.
        times_ms: Where the time went.
    """

    id: str
    keep: float | str
    num_image_tokens: int | None = None
    num_kept: int | None = None
    text: str | None = None
    error: str | None = None
    text_tokens: int | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    finish_reason: str | None = None
    times_ms: Times | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, str) and not self.keep.startswith("auto:"):
            problem = "has a value it cannot have"
            raise FieldError("keep", problem, expected="a number or auto:C", found=self.keep)


def keep_in_log(keep: Keep) -> float | str:
    """What a record calls ``keep``."""
    return str(keep) if isinstance(keep, AutoKeep) else keep


class SampleLog:
    """A log file, open for appending; ``records`` has what it held, by id and keep.

    Args:
        path: The file; it is made if it is not there.
        header: What the answers belong to, as plain JSON types.
        restart: Throw away what the file holds.

    Raises:
        OptionError: if the file belongs to something else, is no log, cannot be written, or is
            being written by another process.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, restart: bool = False) -> None:
        self.path = path
        self.records: dict[tuple[str, float | str], Record] = {}
        expected = {"log_version": LOG_VERSION, **header}
        try:
            self._file = _open_locked(path)
            content = b"" if restart else _read(self._file, path)
            complete = content.rfind(b"\n") + 1
            lines = content[:complete].splitlines()
            if lines:
                self._read(lines, expected)
            elif content and not json.dumps(expected).encode().startswith(content):
                raise _no_log(path, "a line that is not the beginning of this log")
            self._file.truncate(complete)
            self._file.seek(complete)
        except OSError as error:
            raise OptionError(
                f"the log {path} cannot be written", expected="a folder to write to", found=error
            ) from error
        if not lines:
            self._write(expected)

    def __enter__(self) -> SampleLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, record: Record) -> None:
        """Add an answer and hand it to the system before returning."""
        plain = dataclasses.asdict(record)
        self._write({name: value for name, value in plain.items() if value is not None})
        self.records[record.id, record.keep] = record

    def has_answer(self, sample_id: str, keep: float | str) -> bool:
        """Whether this question was answered; a failure is no answer."""
        record = self.records.get((sample_id, keep))
        return record is not None and record.error is None

    def _write(self, value: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode("utf-8") + b"\n")
        self._file.flush()

    def _read(self, lines: list[bytes], expected: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                value = parse_json(line)
                if number == 1:
                    _check_header(self.path, value, expected)
                    continue
                record = read_dataclass(Record, _NOTHING | value)
            except (ValueError, TypeError, FieldError) as error:
                raise _no_log(self.path, f"line {number}: {str(error).splitlines()[0]}") from error
            self.records[record.id, record.keep] = record


def _open_locked(path: Path) -> BinaryIO:
    """The file for one process at a time: two would write over each other's answers."""
    number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    file = os.fdopen(number, "r+b") if stat.S_ISREG(os.fstat(number).st_mode) else None
    if file is None:
        os.close(number)
        raise _no_log(path, "no plain file")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise OptionError(
            f"the log {path} is being written by another divprune-eval",
            expected="one evaluation of a folder at a time",
            found="a lock",
            fix="wait for it, or name another --output directory",
        ) from error
    except (ImportError, OSError):  # Windows, and file systems without locks
        pass
    return file


def _read(file: BinaryIO, path: Path) -> bytes:
    content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise _no_log(path, f"more than {_MAX_BYTES} bytes")
    return content


_NOTHING: dict[str, Any] = {
    field.name: None for field in dataclasses.fields(Record) if field.default is None
}


def _check_header(path: Path, found: object, expected: Mapping[str, Any]) -> None:
    if not isinstance(found, dict) or "log_version" not in found:
        raise _no_log(path, "another first line")
    differ = [name for name in (*expected, *found) if found.get(name) != expected.get(name)]
    if differ:
        name = differ[0]
        raise OptionError(
            f"{path} belongs to another evaluation: {name} differs",
            expected=expected.get(name, "no such entry"),
            found=found.get(name, "no such entry"),
            fix="name another --output directory, or start over with --force",
        )


def _no_log(path: Path, found: str) -> OptionError:
    return OptionError(
        f"{path} is not a log of this version of divprune-eval",
        expected=f"a log of version {LOG_VERSION}",
        found=found,
        fix="name another --output directory, or start over with --force",
    )
