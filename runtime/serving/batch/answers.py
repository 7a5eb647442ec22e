"""The output: answers that are written once, and a run that can go on where it was.

    OUTPUT/run.json            what this is the output of
    OUTPUT/answers.jsonl       one answer a line, appended as they come
    OUTPUT/part-00000.parquet  for Parquet: what was in answers.jsonl, which is gone at the end

A killed process leaves at most half a line behind, which the next one cuts off. A Parquet part is
moved into place before its rows leave ``answers.jsonl``; a kill in between leaves them in both, and
the next run takes them out of the latter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from divprune.runtime.errors import DatasetError, OptionError
from divprune.runtime.serving.batch.table import import_pyarrow

if sys.platform != "win32":
    import fcntl

__all__ = ["FORMATS", "AnswerStore"]

FORMATS = ("jsonl", "parquet")
_RUN = "run.json"
_SYNC_S = 2.0
_PART_ROWS = 20_000
_FIELDS = {
    "id": "string",
    "answer": "string",
    "error": "string",
    "finish_reason": "string",
    "num_image_tokens": "int64",
    "num_kept": "int64",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "ttft_ms": "float64",
    "total_ms": "float64",
}


class AnswerStore:
    """An output that is open for more answers; no second process can open it meanwhile.

    Args:
        folder: OUTPUT.
        form: One of `FORMATS`.
        settings: What the answers depend on; an output of other settings is refused.

    Attributes:
        done: Keys that have an answer, or an error.
        failed: How many of them are errors.

    Raises:
        OptionError: if the folder is the output of another run, another program's, or in use.
    """

    def __init__(self, folder: Path, form: str, settings: Mapping[str, Any]) -> None:
        self._folder = folder
        self._form = form
        self._log_path = folder / "answers.jsonl"
        self._made = not folder.exists()
        self._lock = _claim(folder, {"form": form, **settings})
        self.done: set[str] = set()
        self.failed = 0
        self._parts = sorted(folder.glob("part-*.parquet"))
        for stale in folder.glob(".part-*.tmp"):
            stale.unlink()
        for part in self._parts:
            self._remember(_read_part(part))
        in_log = self._mend_log()
        self._remember(in_log)
        self._in_log = len(in_log)
        self._log: BinaryIO = self._log_path.open("ab")
        self._synced = monotonic()

    def append(self, answers: Iterable[Mapping[str, Any]]) -> None:
        """Write answers; those whose keys have one already are dropped."""
        new = [answer for answer in answers if answer["id"] not in self.done]
        self._log.write(b"".join(map(_line, new)))
        self._log.flush()
        self._remember(new)
        self._in_log += len(new)
        if monotonic() - self._synced > _SYNC_S:
            os.fsync(self._log.fileno())
            self._synced = monotonic()
        if self._form == "parquet" and self._in_log >= _PART_ROWS:
            self._make_part()

    def close(self, *, complete: bool) -> None:
        """Sync; with Parquet a complete output has no ``answers.jsonl`` left.

        A run that has answered nothing leaves nothing, so that another may take the name.
        """
        if not self.done:
            self._remove()
            return
        self._log.flush()
        os.fsync(self._log.fileno())
        if complete and self._form == "parquet":
            self._make_part()
            self._log.close()
            self._log_path.unlink()
        self._log.close()
        self._lock.close()

    def _remove(self) -> None:
        self._log.close()
        self._log_path.unlink()
        (self._folder / _RUN).unlink()
        self._lock.close()
        if self._made:
            self._folder.rmdir()

    def _remember(self, answers: Iterable[Mapping[str, Any]]) -> None:
        for answer in answers:
            self.done.add(answer["id"])
            self.failed += answer["error"] is not None

    def _mend_log(self) -> list[dict[str, Any]]:
        """Cut half a line off, and rows that a part has; the rows that are left."""
        if not self._log_path.exists():
            return []
        data = self._log_path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        answers = [
            _read_line(line, f"{self._log_path}, line {number}")
            for number, line in enumerate(whole.splitlines(), 1)
        ]
        left = [answer for answer in answers if answer["id"] not in self.done]
        if len(whole) < len(data) or len(left) < len(answers):
            self._write_log(left)
        return left

    def _write_log(self, answers: Iterable[Mapping[str, Any]]) -> None:
        partial = self._log_path.with_name(".answers.jsonl.tmp")
        with partial.open("wb") as file:
            for answer in answers:
                file.write(_line(answer))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._log_path)

    def _make_part(self) -> None:
        self._log.flush()
        answers = [json.loads(line) for line in self._log_path.read_bytes().splitlines()]
        if not answers:
            return
        pyarrow = import_pyarrow()
        schema = pyarrow.schema(
            [(name, getattr(pyarrow, kind)()) for name, kind in _FIELDS.items()]
        )
        name = f"part-{len(self._parts):05d}.parquet"
        partial = self._folder / f".{name}.tmp"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(answers, schema), partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self._folder / name)
        self._parts.append(self._folder / name)
        self._log.close()
        self._write_log([])
        self._log = self._log_path.open("ab")
        self._in_log = 0


def _line(answer: Mapping[str, Any]) -> bytes:
    """ASCII: whatever is in a text, it is one line."""
    return json.dumps({name: answer.get(name) for name in _FIELDS}).encode() + b"\n"


def _read_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict) or not {"id", "error"} <= answer.keys():
        raise DatasetError(
            f"{where} is no answer",
            expected="what divprune-batch wrote; take the line out, and its row is asked again",
            found=line[:60],
        )
    return answer


def _read_part(part: Path) -> Iterator[dict[str, Any]]:
    pyarrow = import_pyarrow()
    try:
        table = pyarrow.parquet.read_table(part, columns=["id", "error"])
    except (OSError, pyarrow.ArrowException) as error:
        raise DatasetError(
            f"{part} is damaged", found=str(error).splitlines()[0], fix="remove it and run again"
        ) from error
    yield from table.to_pylist()


def _claim(folder: Path, settings: Mapping[str, Any]) -> BinaryIO:
    """The locked ``run.json``, of a new output or one of the same settings."""
    run = folder / _RUN
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"OUTPUT {folder} is a file", expected="a folder, new or of the same run")
    if folder.is_dir() and not run.exists() and any(folder.iterdir()):
        raise OptionError(
            f"OUTPUT {folder} holds something else",
            expected="a new folder, or one that divprune-batch has begun",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"OUTPUT {folder} cannot be made", found=error) from error
    file = run.open("a+b")
    if sys.platform != "win32":
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OptionError(f"another process is writing to {folder}") from error
        if os.fstat(file.fileno()).st_nlink == 0:  # by a run that answered nothing and has gone
            file.close()
            return _claim(folder, settings)
    file.seek(0)
    text = file.read()
    wanted = json.loads(json.dumps(settings))
    if not text:
        file.write(json.dumps(wanted, indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
        return file
    _compare(folder, wanted, _parse(text))
    return file


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _compare(folder: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    names = [name for name in wanted if wanted[name] != found.get(name)]
    if names:
        raise OptionError(
            f"OUTPUT {folder} is that of another run",
            expected="; ".join(f"{name} {wanted[name]!r}" for name in names),
            found="; ".join(f"{name} {found.get(name)!r}" for name in names),
            fix="name another OUTPUT, or run with the same settings to go on",
        )
