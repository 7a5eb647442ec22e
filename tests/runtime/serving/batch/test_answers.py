from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from divprune.runtime.errors import DatasetError, OptionError
from divprune.runtime.serving.batch.answers import AnswerStore

SETTINGS = {"engine": "abc", "keep": 0.1}


def answer(key: str, error: str | None = None) -> dict[str, Any]:
    return {"id": key, "answer": None if error else f"answer {key}", "error": error}


def store(folder: Path, form: str = "jsonl", settings: Any = SETTINGS) -> AnswerStore:
    return AnswerStore(folder, form, settings)


def keys(folder: Path) -> list[str]:
    return [json.loads(line)["id"] for line in (folder / "answers.jsonl").open()]


def write(folder: Path, names: Sequence[str], form: str = "jsonl", *, complete: bool) -> None:
    opened = store(folder, form)
    opened.append([answer(name) for name in names])
    opened.close(complete=complete)


def test_answers_are_appended_and_known_to_the_next_run(tmp_path: Path) -> None:
    write(tmp_path / "out", "ab", complete=False)
    opened = store(tmp_path / "out")
    assert opened.done == {"a", "b"}
    opened.append([answer("b"), answer("c", "broken")])
    assert opened.failed == 1
    opened.close(complete=True)
    assert keys(tmp_path / "out") == ["a", "b", "c"]


def test_half_a_line_of_a_killed_run_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path, "ab", complete=False)
    with (tmp_path / "answers.jsonl").open("a") as file:
        file.write('{"id": "c", "answer": "hal')
    opened = store(tmp_path)
    assert opened.done == {"a", "b"}
    opened.append([answer("c")])
    opened.close(complete=True)
    assert keys(tmp_path) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "line", ["junk", "[]", "null", '{"id": "c"}', '{"error": null}', "[" * 100_000]
)
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, line: str) -> None:
    write(tmp_path, "ab", complete=False)
    before = (tmp_path / "answers.jsonl").read_text() + line + "\n"
    (tmp_path / "answers.jsonl").write_text(before)
    with pytest.raises(DatasetError, match=r"answers\.jsonl, line 3 is no answer"):
        store(tmp_path)
    assert (tmp_path / "answers.jsonl").read_text() == before


def test_text_of_any_kind_comes_back(tmp_path: Path) -> None:
    opened = store(tmp_path)
    text = "line\nbreak \u2028 \udcff é"
    opened.append([{"id": "a", "answer": text, "error": None}])
    opened.close(complete=False)
    opened = store(tmp_path)
    assert opened.done == {"a"}
    opened.close(complete=True)


def test_output_of_other_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    write(tmp_path, "a", complete=True)
    with pytest.raises(OptionError, match=r"another run(.|\n)*keep 0\.2(.|\n)*keep 0\.1"):
        store(tmp_path, settings={**SETTINGS, "keep": 0.2})
    with pytest.raises(OptionError, match="form"):
        store(tmp_path, "parquet")


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OptionError, match="something else"):
        store(tmp_path)
    with pytest.raises(OptionError, match="is a file"):
        store(tmp_path / "thesis.txt")
    with pytest.raises(OptionError, match="cannot be made"):
        store(tmp_path / "thesis.txt" / "out")


def test_run_that_answers_nothing_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "out", "", complete=False)
    assert not (tmp_path / "out").exists()
    write(tmp_path, "", complete=False)
    assert list(tmp_path.iterdir()) == []


def test_second_writer_is_refused(tmp_path: Path) -> None:
    opened = store(tmp_path)
    with pytest.raises(OptionError, match="another process"):
        store(tmp_path)
    opened.close(complete=True)
    store(tmp_path).close(complete=True)


@pytest.mark.skipif(sys.platform == "win32", reason="outputs are locked by flock")
def test_output_that_another_run_removes_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    other, lock = store(tmp_path / "out"), fcntl.flock

    def lock_after_the_other_has_gone(*arguments: Any) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        other.close(complete=False)
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", lock_after_the_other_has_gone)
    write(tmp_path / "out", "ab", complete=True)
    assert keys(tmp_path / "out") == ["a", "b"]
    with pytest.raises(OptionError, match="that of another run"):
        store(tmp_path / "out", settings={"engine": "other"})


@pytest.fixture
def parquet() -> Any:
    pytest.importorskip("pyarrow", reason="the extra batch is not installed")
    return pytest.importorskip("pyarrow.parquet")


def test_complete_parquet_has_parts_only(tmp_path: Path, parquet: Any) -> None:
    write(tmp_path, "ab", "parquet", complete=False)
    assert keys(tmp_path) == ["a", "b"]
    write(tmp_path, "c", "parquet", complete=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-00000.parquet", "run.json"]
    table = parquet.read_table(tmp_path / "part-00000.parquet")
    assert table["id"].to_pylist() == ["a", "b", "c"]
    assert table["answer"][2].as_py() == "answer c"
    opened = store(tmp_path, "parquet")
    assert opened.done == {"a", "b", "c"}
    opened.append([answer("d")])
    opened.close(complete=True)
    assert parquet.read_table(tmp_path / "part-00001.parquet")["id"].to_pylist() == ["d"]


def test_rows_that_are_in_a_part_already_leave_the_log(tmp_path: Path, parquet: Any) -> None:
    """A run that was killed after it moved a part into place."""
    write(tmp_path, "ab", "parquet", complete=False)
    log = (tmp_path / "answers.jsonl").read_bytes()
    write(tmp_path, "", "parquet", complete=True)
    (tmp_path / "answers.jsonl").write_bytes(log)
    (tmp_path / ".part-00001.parquet.tmp").write_bytes(b"half")
    write(tmp_path, "c", "parquet", complete=True)
    found = [
        key for part in sorted(tmp_path.glob("*.parquet")) for key in parquet.read_table(part)["id"]
    ]
    assert [key.as_py() for key in found] == ["a", "b", "c"]
    assert not list(tmp_path.glob(".part*"))


def test_full_log_becomes_a_part_while_the_run_goes_on(
    tmp_path: Path, parquet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divprune.runtime.serving.batch.answers._PART_ROWS", 2)
    write(tmp_path, "abc", "parquet", complete=False)
    assert (tmp_path / "part-00000.parquet").exists()
    assert keys(tmp_path) == []
