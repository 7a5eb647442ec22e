from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from divprune.runtime.directory.engine_directory import EngineDirectory
from divprune.runtime.directory.manifest import FileRecord
from divprune.runtime.errors import OptionError
from divprune.runtime.reports.eval.plan import EvalOptions, plan_runs
from tests.runtime.example_manifest import example_manifest


def directory(label: str, *, weights: str = "1", baseline: bool = True, **selector):
    manifest = example_manifest()
    files = manifest.files | {"embed_tokens.safetensors": FileRecord(weights * 64, 1)}
    changed = replace(manifest.selector, **selector)
    return EngineDirectory(
        Path("/engines") / label,
        replace(manifest, files=files, selector=changed, baseline=baseline),
    )


def test_keep_one_joins_what_was_exported():
    (run,), notes = plan_runs([directory("a")], None)
    assert run.keeps == (0.4, 1.0)
    assert (run.baseline, notes) == ("a", [])


def test_several_directories_of_a_model_share_one_baseline():
    first, second, other = (
        directory("a"),
        directory("b", name="random"),
        directory("c", weights="2"),
    )
    runs, notes = plan_runs([first, second, other], (0.4, 0.2))
    assert [run.keeps for run in runs] == [
        (0.2, 0.4, 1.0),
        (0.2, 0.4),
        (0.2, 0.4, 1.0),
    ]
    assert [run.baseline for run in runs] == ["a", "a", "c"]
    assert notes == ["b: keep 1.0 is that of a"]


def test_each_directory_answers_with_what_it_can_serve():
    fixed = directory("fixed", nested=False, num_kept=2, keep=0.2)
    runs, notes = plan_runs([directory("a"), fixed], (0.4, 0.2, 0.1))
    assert runs[1].keeps == (0.2,)
    assert "fixed cannot serve keep 0.4, 0.1" in notes


def test_a_fraction_that_nobody_can_serve_is_refused():
    with pytest.raises(OptionError, match="larger than what this engine directory"):
        plan_runs([directory("a")], (0.4, 0.8))
    with pytest.raises(OptionError, match=r"(?s)no engine directory can serve.*0\.8"):
        plan_runs([directory("a"), directory("b")], (0.4, 0.8))
    fixed = directory("fixed", nested=False)
    with pytest.raises(OptionError, match="cannot keep fewer tokens"):
        plan_runs([directory("a"), fixed], (0.2,))


def test_a_model_without_its_baseline_is_compared_with_nothing():
    (run,), notes = plan_runs([directory("a", baseline=False)], (0.2,))
    assert (run.keeps, run.baseline) == ((0.2,), None)
    assert any("without the baseline" in note for note in notes)


def test_two_directories_of_one_name_are_refused():
    with pytest.raises(OptionError, match="the same name"):
        plan_runs([directory("x/a"), directory("y/a")], None)


@pytest.mark.parametrize(
    "options",
    [{"metric": "bleu"}, {"max_new_tokens": 0}, {"backend": "abacus"}, {"threads": 0}],
)
def test_options_are_checked_when_they_are_made(options):
    with pytest.raises(OptionError):
        EvalOptions(**options)
