from __future__ import annotations

import json
from pathlib import Path

import pytest

from divprune.runtime.cli.compare import main
from divprune.runtime.reports.bench.compare import (
    comparison,
    read_report,
    report_table,
    require_same_work,
    stage_comparison,
)
from divprune.runtime.reports.bench.report import ReportError
from tests.runtime.reports.bench.made_up_report import made_up_report, made_up_run

FIRST = made_up_report()
# Another board: prefill twice as fast with everything kept, equally fast with a quarter.
SECOND = made_up_report(
    device__name="Other Board",
    device__threads=None,
    engine__dtype="fp32",
    engine__backend="tensorrt 10.3 (CUDA)",
    runs=(made_up_run(1.0, 40, 400.0), made_up_run(0.25, 10, 200.0)),
)


@pytest.fixture
def files(tmp_path):
    for name, report in (("a.json", FIRST), ("b.json", SECOND)):
        (tmp_path / name).write_text(report.to_json())
    return [str(tmp_path / "a.json"), str(tmp_path / "b.json")]


def test_other_devices_backends_and_precisions_may_be_compared():
    require_same_work([FIRST, SECOND, FIRST], ["a", "b", "c"])


def test_ratios_are_to_the_first_report():
    entries = [entry for entry in comparison([FIRST, SECOND]) if entry["stage"] == "prefill"]
    assert entries == [
        {"stage": "prefill", "keep": 1.0, "p50_ms": [800.0, 400.0], "speedup": [1.0, 2.0]},
        {"stage": "prefill", "keep": 0.25, "p50_ms": [200.0, 200.0], "speedup": [1.0, 1.0]},
    ]


def test_the_table_has_a_time_and_a_ratio_for_every_further_report():
    table = stage_comparison([FIRST, SECOND, FIRST])
    assert table.header == ("stage", "keep", "A", "B", "A/B", "C", "A/C")
    assert ("prefill", "1.0", "800", "400", "2.00", "800", "1.00") in table.rows


def test_reports_are_listed_with_what_may_differ():
    rows = report_table([FIRST, SECOND]).rows
    assert [row[:2] for row in rows] == [("A", "Some Board"), ("B", "Other Board")]
    assert [row[4:6] for row in rows] == [("fp16", "2"), ("fp32", "-")]
    assert "tensorrt 10.3 (CUDA)" in rows[1][3]


def test_a_time_that_one_report_lacks_has_no_ratio():
    run = SECOND.runs[0]
    stages = type(run.stages)(
        **{name: stat for name, stat in run.stages.measured() if name != "selection"},
        selection=None,
    )
    other = made_up_report(runs=(made_up_run(1.0, 40, 400.0, stages=stages), SECOND.runs[1]))
    entry = next(e for e in comparison([FIRST, other]) if e["stage"] == "selection")
    assert (entry["p50_ms"], entry["speedup"]) == ([5, None], [1.0, None])
    assert ("  of it selection", "1.0", "5.00", "-", "-") in stage_comparison([FIRST, other]).rows


@pytest.mark.parametrize(
    "change, fact, value",
    [
        ({"engine__model": "other/model"}, "model", "other/model"),
        ({"engine__revision": "abc"}, "revision", "abc"),
        ({"engine__selector": "random"}, "selector", "random"),
        ({"engine__num_image_tokens": 41}, "visual tokens", "41"),
        ({"work__image": None}, "picture", "1 x 2, cdcdcdcdcdcd"),
        ({"work__prompt": "What?"}, "prompt", "What?"),
        ({"work__text_tokens": 21}, "text tokens", "21"),
        ({"work__max_new_tokens": 9}, "max new tokens", "9"),
        ({"work__ignore_eos": True}, "ignore EOS", "True"),
        ({"runs": (made_up_run(1.0, 40, 1.0),)}, "kept fractions", "1.0"),
        (
            {"runs": (made_up_run(1.0, 40, 1.0), made_up_run(0.25, 11, 1.0))},
            "kept tokens",
            "40, 11",
        ),
    ],
)
def test_unlike_work_is_refused_with_what_differs(change, fact, value):
    if "work__image" in change:
        change = {"work__image": type(FIRST.work.image)("x.png", 1, 2, "cd" * 32)}
    with pytest.raises(ReportError) as caught:
        require_same_work([FIRST, FIRST, made_up_report(**change)], ["a", "b", "c"])
    assert f"c measured other work than a: {fact}" in caught.value.what
    assert f"{fact}: {value}" in caught.value.found
    assert f"{fact}: " in caught.value.expected


def test_a_long_prompt_is_shortened_in_the_message():
    with pytest.raises(ReportError) as caught:
        require_same_work([FIRST, made_up_report(work__prompt="and " * 500)], ["a", "b"])
    assert len(str(caught.value)) < 500


def test_the_command_prints_both_tables(files, capsys):
    assert main(files) == 0
    out, err = capsys.readouterr()
    assert "Other Board" in out
    assert "A/B" in out
    assert err == ""


def test_the_command_prints_markdown(files, capsys):
    assert main([*files, "--markdown"]) == 0
    assert "| prefill | 1.0 | 800 | 400 | 2.00 |" in capsys.readouterr().out


def test_the_command_prints_json(files, capsys):
    assert main([*files, "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert fields["reports"] == files
    assert fields["stages"] == comparison([FIRST, SECOND])


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "is missing"),
        (b"\xff\xfe", "cannot be read"),
        (b"{}", "is not a benchmark report"),
        (b'{"schema_version": 2}', "is of a newer version"),
        (made_up_report(work__prompt="x").to_json().encode(), "measured other work than"),
    ],
)
def test_the_command_refuses_what_it_cannot_compare(files, tmp_path, capsys, content, message):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    assert main([*files, str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "c.json" in err
    assert message in err


def test_one_report_is_not_enough(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["a.json"])
    assert caught.value.code == 2


def test_a_report_is_read_from_its_file(files):
    assert read_report(Path(files[1])) == SECOND
