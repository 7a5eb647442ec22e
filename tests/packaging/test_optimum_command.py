"""`optimum-cli export divprune` from an installed wheel: where users of Optimum look."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("optimum")

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def run(wheel_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    cwd = tmp_path_factory.mktemp("cwd")

    def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [wheel_bin / name, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)

    return run_script


def _flags(help_text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_text))


def test_help_shows_the_arguments_of_divprune_export(run: Run) -> None:
    ours = run("divprune-export", "--help")
    theirs = run("optimum-cli", "export", "divprune", "--help")
    assert theirs.returncode == 0, theirs.stderr
    assert {"--model", "--keep", "--output", "--force"} <= _flags(theirs.stdout)
    assert _flags(theirs.stdout) - {"-cli"} == _flags(ours.stdout) - {"-export"}


def test_command_is_listed_among_optimums_exports(run: Run) -> None:
    done = run("optimum-cli", "export", "--help")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\s+divprune\s", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--model", "./no-such-folder", "--keep", "0.1"], id="no such model"),
        pytest.param(["--model", "./no-such-folder", "--keep", "10"], id="keep in percent"),
        pytest.param(["--keep", "0.1"], id="model missing"),
    ],
)
def test_errors_are_those_of_divprune_export(run: Run, arguments: list[str]) -> None:
    ours = run("divprune-export", *arguments)
    theirs = run("optimum-cli", "export", "divprune", *arguments)
    assert (ours.returncode, theirs.returncode) == (2, 2), theirs.stderr
    assert theirs.stdout == ours.stdout
    # What comes before is argparse's usage, with the name of the program.
    before, error, message = theirs.stderr.partition("error: ")
    assert error, before
    # Where optimum's own parser refuses, the command that mends it is its to name.
    first, *_ = message.splitlines()
    assert first == ours.stderr.partition("error: ")[2].splitlines()[0]
