"""Advice about reports of a benchmark: it is done, and the reports compared."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from divprune.runtime.reports.bench import report as bench_report
from tests.advice.covered import REPORTS
from tests.advice.tools import assert_gave, attempt

BENCH = "divprune-bench {engine} --iters 1 --warmup 0 --no-probe -q --max-new-tokens {count}"
BENCH += " --output {folder}/{name}"


@pytest.fixture(scope="module")
def folder(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two reports of the same work, and one of more tokens."""
    found = tmp_path_factory.mktemp("reports")
    for name, count in (("a", 2), ("b", 2), ("longer", 3)):
        command = BENCH.format(engine=engine_dir, folder=found, name=f"{name}.json", count=count)
        assert attempt(shlex.split(command)).code == 0
    return found


def compare(folder: Path, second: str) -> list[str]:
    return ["divprune-compare", str(folder / "a.json"), str(folder / second)]


def changed(folder: Path, change: Callable[[dict[str, object]], object]) -> str:
    content = json.loads((folder / "b.json").read_text())
    change(content)
    (folder / "changed.json").write_text(json.dumps(content))
    return "changed.json"


def test_reports_of_other_work_are_measured_alike(folder):
    assert_gave(attempt(compare(folder, "longer.json")), REPORTS["reports of other work"])
    assert attempt(compare(folder, "b.json")).code == 0


def test_a_damaged_report_is_written_again(folder):
    damaged = changed(folder, lambda content: content.pop("runs", content.popitem()))
    assert_gave(attempt(compare(folder, damaged)), REPORTS["a damaged report"])
    assert attempt(compare(folder, "b.json")).code == 0


def test_the_version_that_wrote_a_report_reads_it(folder, monkeypatch):
    newer = bench_report.SCHEMA_VERSION + 1
    written = changed(folder, lambda content: content.update(schema_version=newer))
    assert_gave(attempt(compare(folder, written)), REPORTS["a newer report"])
    for name in ("a.json", "b.json"):
        assert (folder / name).is_file()
    monkeypatch.setattr(bench_report, "SCHEMA_VERSION", newer)
    both = ["divprune-compare", str(folder / written), str(folder / written)]
    assert attempt(both).code == 0
