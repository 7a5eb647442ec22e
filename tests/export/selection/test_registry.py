"""Selectors by name: this package's, and those of installed packages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from divprune.export.selection import SELECTORS, get_selector, selector_names
from divprune.export.selection.contract import check_selector
from divprune.runtime.errors import OptionError, UnsupportedError

# What the README of export/selection/ shows.
FIRST_ROWS = '''
import numpy as np

from divprune.export.selection import Selector
from divprune.export.selection.checks import check_count, check_finite
from divprune.export.selection.protocol import NO_ARRAYS, NO_VALUES


class FirstRows(Selector):
    """The first K tokens."""

    name, version = "first-rows", 1
    nested, merges, inside_llm = True, False, False

    def select(self, features, num_kept, signals=NO_ARRAYS):
        check_count(num_kept, len(features))
        check_finite("visual features", features)
        return np.arange(num_kept)

    def regret(self, features, order, signals=NO_ARRAYS):
        return 0.0 if np.array_equal(order, np.arange(len(order))) else np.inf

    def write(self, op, features, num_tokens, num_kept, signals=NO_VALUES):
        check_count(num_kept, num_tokens)
        return op("Identity", op.constant(np.arange(num_kept), "order"))
'''


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with an installed package that offers two selectors."""
    (tmp_path / "first_rows_for_test.py").write_text(FIRST_ROWS)
    info = tmp_path / "first_rows-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: first-rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[divprune.selectors]\n"
        "first-rows = first_rows_for_test:FirstRows\n"
        "broken = no_such_module_anywhere:Selector\n"
        "misnamed = first_rows_for_test:FirstRows\n"
        "divprune = first_rows_for_test:FirstRows\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_readme_shows_this_selector_in_under_30_lines(root: Path) -> None:
    readme = (root / "export" / "selection" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert code.strip() in FIRST_ROWS
    section = readme[readme.index("## Adding one") : readme.index("`needs` names")]
    assert len([line for line in section.splitlines() if line.strip()]) < 30


def test_divprune_is_registered_with_the_facts_of_the_manifest() -> None:
    selector = get_selector("divprune")
    assert (selector.name, selector.version) == ("divprune", 1)
    assert (selector.nested, selector.merges, selector.inside_llm) == (True, False, False)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_goes_by_the_name_it_is_registered_under(name: str) -> None:
    assert get_selector(name).name == name


def test_unknown_selector_is_refused_with_the_known_names() -> None:
    with pytest.raises(OptionError, match=r"one of divprune, scope, .*downsample"):
        get_selector("divprun")


@pytest.mark.usefixtures("installed")
def test_a_selector_of_another_package_is_found_and_keeps_the_contract() -> None:
    selector = get_selector("first-rows")
    check_selector(selector)
    assert selector.select(np.ones((5, 2), np.float32), 2).tolist() == [0, 1]


@pytest.mark.usefixtures("installed")
def test_selectors_of_other_packages_are_listed_where_one_is_unknown() -> None:
    assert "first-rows" in selector_names()
    with pytest.raises(OptionError, match="first-rows"):
        get_selector("first-row")


@pytest.mark.usefixtures("installed")
def test_a_package_cannot_replace_a_selector_of_this_one() -> None:
    assert type(get_selector("divprune")).__name__ == "DivPrune"
    assert selector_names().count("divprune") == 1


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "found"),
    [("broken", "No module named 'no_such_module_anywhere'"), ("misnamed", "'first-rows'")],
)
def test_a_broken_entry_point_is_an_error_that_names_its_package(name: str, found: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        get_selector(name)
    message = str(caught.value)
    assert f"the selector {name!r} of package first-rows does not load" in message
    assert found in message
    assert "pip install --upgrade first-rows" in message
