from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.generated_table import RESULTS
from benchmarks.results_table import main, render
from tests.runtime.reports.bench.made_up_report import made_up_report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "latency-board.json").write_text(made_up_report().to_json())
    return tmp_path


def test_the_committed_table_is_what_the_reports_say():
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == render(RESULTS)


def test_every_fraction_of_every_report_has_a_row(folder):
    text = render(folder)
    assert "| board | some/model fp16 | 1.0 | 60 | 200 | 800 | 1013 | - | 20.0 | 3,072 |" in text
    assert "| board | some/model fp16 | 0.25 | 30 | 200 | 200 | 413 | - | 20.0 | 3,072 |" in text
    assert (
        "- [latency-board.json](latency-board.json): Some Board, 4 cores, threads: 2, 15W" in text
    )


def test_other_files_of_the_folder_are_left_alone(folder):
    text = render(folder)
    (folder / "export-board.json").write_text("{}")
    assert render(folder) == text


def test_a_folder_without_reports_says_so(tmp_path):
    assert "There is no report yet." in render(tmp_path)


def test_the_check_notices_a_report_that_is_not_in_the_table(folder, capsys):
    assert main([str(folder)]) == 0
    assert main([str(folder), "--check"]) == 0
    (folder / "latency-other.json").write_text(made_up_report(device__name="Other").to_json())
    assert main([str(folder), "--check"]) == 1
    assert "is out of date" in capsys.readouterr().err


def test_a_file_that_is_no_report_is_refused(folder, capsys):
    (folder / "latency-other.json").write_text("{}")
    assert main([str(folder)]) == 2
    assert "latency-other.json is not a benchmark report" in capsys.readouterr().err
