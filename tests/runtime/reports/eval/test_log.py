from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from divprune.runtime.errors import OptionError
from divprune.runtime.reports.eval.log import Record, SampleLog, Times

HEADER = {"engine": "a", "data_sha256": "1"}
ANSWER = Record("1", 0.1, 196, 20, "röd", None, 11, 31, 2, "stop", Times(1.0, 2.0, 3.5, None))
FAILURE = Record("2", "auto:0.8", error="2.png does not exist")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.jsonl"
    with SampleLog(path, HEADER) as log:
        log.append(ANSWER)
        log.append(FAILURE)
    return path


def test_what_was_appended_is_read_again(path):
    with SampleLog(path, HEADER) as log:
        assert log.records == {("1", 0.1): ANSWER, ("2", "auto:0.8"): FAILURE}
        assert log.has_answer("1", 0.1)
        assert not log.has_answer("1", 0.5)


def test_a_failure_is_no_answer_and_is_replaced_by_one(path):
    better = Record("2", "auto:0.8", 196, 20, "blue", None, 11, 31, 2, "stop", None)
    with SampleLog(path, HEADER) as log:
        assert not log.has_answer("2", "auto:0.8")
        log.append(better)
    with SampleLog(path, HEADER) as log:
        assert log.records["2", "auto:0.8"] == better


def test_a_line_cut_short_at_any_byte_is_dropped_and_written_over(path):
    content = path.read_bytes()
    second = content.index(b"\n", content.index(b"\n") + 1) + 1
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with SampleLog(path, HEADER) as log:
            assert log.has_answer("1", 0.1) == (end >= second)
            log.append(FAILURE)
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert len(lines) == (3 if end >= second else 2)


def test_an_answer_is_on_the_disk_before_the_next_is_asked(path):
    with SampleLog(path, HEADER) as log:
        log.append(Record("3", 0.1, 196, 20, "green"))
        assert path.read_text().endswith('"text": "green"}\n')


@pytest.mark.parametrize("header", [HEADER | {"engine": "b"}, {"engine": "a"}, HEADER | {"x": 1}])
def test_a_log_of_something_else_is_refused_and_left_alone(path, header):
    content = path.read_bytes()
    with pytest.raises(OptionError, match=r"(?s)belongs to another evaluation.*--force"):
        SampleLog(path, header)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"hello", b"hello\n", b'{"id": "1"}\n', b"[]\n"])
def test_a_file_that_is_no_log_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(OptionError, match="is not a log"):
        SampleLog(path, HEADER)
    assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_named(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b'{"id": "1", "keep": "all"}\n' + lines[1])
    with pytest.raises(OptionError, match="line 2"):
        SampleLog(path, HEADER)


def test_a_log_can_be_started_over(path):
    with SampleLog(path, HEADER | {"engine": "b"}, restart=True) as log:
        assert log.records == {}
    assert json.loads(path.read_text())["engine"] == "b"


def test_a_log_in_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(OptionError, match="cannot be written"):
        SampleLog(tmp_path / "no" / "a.jsonl", HEADER)


# --- several processes, and files that are none


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("other", [{}, {"metric": "relaxed-match"}, {"engine": "f" * 64}])
@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_second_evaluation_of_the_folder_is_refused(path, restart, other, through_a_link):
    pytest.importorskip("fcntl")
    content = path.read_bytes()
    again = path
    if through_a_link:
        again = path.with_name("link.jsonl")
        again.symlink_to(path)
    with SampleLog(path, HEADER) as log:
        with pytest.raises(OptionError, match="another divprune-eval"):
            SampleLog(again, {**HEADER, **other}, restart=restart)
        assert path.read_bytes() == content
        log.append(ANSWER)
    with SampleLog(path, HEADER) as log:
        assert log.has_answer("1", 0.1)


def test_an_evaluation_of_another_process_is_noticed(path):
    pytest.importorskip("fcntl")
    code = (
        "import sys, pathlib; from divprune.runtime.reports.eval.log import SampleLog;"
        f"log = SampleLog(pathlib.Path({str(path)!r}), {HEADER!r}); print('open', flush=True);"
        "sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(OptionError, match="another divprune-eval"):
            SampleLog(path, HEADER)
    finally:
        process.communicate(b"")
    with SampleLog(path, HEADER) as log:  # a lock does not outlive its process
        assert log.has_answer("1", 0.1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(OptionError, match="no plain file"):
        SampleLog(tmp_path / "a.jsonl", HEADER)


def test_a_log_of_50_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("divprune.runtime.reports.eval.log._MAX_BYTES", 1000)
    with (tmp_path / "a.jsonl").open("wb") as file:
        file.truncate(50 * 10**9)
    with pytest.raises(OptionError, match="more than"):
        SampleLog(tmp_path / "a.jsonl", HEADER)


@pytest.mark.parametrize("line", ['{"a":' * 100_000, '{"id": "\\ud800"}', "[]", "null", "3", '""'])
def test_a_line_that_is_no_answer_is_named(path, line):
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    with pytest.raises(OptionError, match="line 4"):
        SampleLog(path, HEADER)
