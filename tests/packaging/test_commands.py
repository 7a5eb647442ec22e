"""``python -m divprune`` lists the commands that are installed, and runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

from divprune.__main__ import COMMANDS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "divprune", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_commands_are_those_of_the_distribution(root: Path) -> None:
    scripts = tomllib.loads((root / "pyproject.toml").read_text())["project"]["scripts"]
    listed = {f"divprune-{name}": f"{module}:main" for name, (module, _) in COMMANDS.items()}
    assert listed == scripts


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_list_names_every_command(arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    assert all(f"divprune-{name}" in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", ["compare", "divprune-compare"])
def test_a_command_runs_by_its_name(name: str) -> None:
    done = run(name, "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("divprune-compare ")


@pytest.mark.parametrize("name", ["nothing", "\x1b[31m"])
def test_an_unknown_command_is_refused(name: str) -> None:
    done = run(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no command" in done.stderr
    assert "\x1b" not in done.stderr
