"""Where clients that no one here wrote are installed, and how they are run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

__all__ = ["CLIENTS", "node_modules", "python_with", "run"]

CLIENTS = Path(__file__).parent / "clients"
_INSTALLED = Path(
    os.environ.get("DIVPRUNE_TEST_CLIENTS", Path(__file__).parents[3] / "build" / "clients")
)
_SECONDS = 180


def run(command: list[Any], **options: Any) -> str:
    """What a command prints; it must succeed."""
    words = [*map(str, command)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=_SECONDS, **options
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def python_with(package: str) -> Path:
    """An interpreter that can import ``package``, or a skipped test."""
    python = _INSTALLED / "bin" / "python"
    command = [python, "-c", f"import {package}"]
    if not python.exists() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"no such client (make clients): {package} in {_INSTALLED}")
    return python


def node_modules(package: str) -> Path:
    """A folder of npm packages with ``package`` in it, or a skipped test."""
    modules = _INSTALLED / "node_modules"
    if shutil.which("node") is None or not (modules / package).exists():
        pytest.skip(f"no such client (make clients): node with {package} in {modules}")
    return modules
