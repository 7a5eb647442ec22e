from __future__ import annotations

import json
from pathlib import Path

import pytest

from divprune.runtime.errors import OptionError
from divprune.runtime.reports.bench.layout import render_csv, render_markdown
from divprune.runtime.reports.bench.output import check_output, write_report
from divprune.runtime.reports.bench.report import Report
from tests.runtime.reports.bench.made_up_report import made_up_report


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.md", "a.html", "A.JSON"])
def test_a_file_that_can_be_written_is_accepted_and_left_alone(tmp_path, name):
    check_output(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_keeps_its_content_until_the_report_is_ready(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    check_output(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["a.txt", "a", "a.json.gz", ".json"])
def test_an_unknown_ending_is_refused(tmp_path, name):
    with pytest.raises(OptionError, match=r"\.json, \.csv, \.md, \.html"):
        check_output(tmp_path / name)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(OptionError, match="cannot be written"):
        check_output(tmp_path / "none" / "a.json")


def test_a_directory_is_refused(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OptionError, match="is a directory"):
        check_output(tmp_path / "a.json")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that root cannot write")
def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(OptionError, match="cannot be written"):
        check_output(Path("/proc/a.json"))


@pytest.mark.parametrize("name, render", [("a.md", render_markdown), ("a.CSV", render_csv)])
def test_the_ending_chooses_the_form(tmp_path, name, render):
    report = made_up_report()
    write_report(report, tmp_path / name)
    assert (tmp_path / name).read_text() == render(report)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_json_report_comes_back(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    write_report(made_up_report(), path)
    assert Report.from_json(path.read_text(), "a") == made_up_report()
    assert json.loads(path.read_text())["schema_version"] == 1


def test_an_html_report_has_the_pictures(tmp_path):
    path = tmp_path / "a.html"
    write_report(made_up_report(), path, lambda: {"kept patches": b"\xff\xd8\xff\xe0"})
    text = path.read_text()
    assert text.lstrip().lower().startswith("<!doctype html>")
    assert "kept patches" in text
    assert "data:image/jpeg;base64,/9j/4A==" in text


def test_pictures_are_drawn_for_html_only(tmp_path):
    def draw():
        raise AssertionError

    write_report(made_up_report(), tmp_path / "a.md", draw)


def test_what_cannot_be_written_after_all_leaves_no_partial_file(tmp_path):
    path = tmp_path / "a.json"
    path.mkdir()
    with pytest.raises(OptionError, match="cannot be written"):
        write_report(made_up_report(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
