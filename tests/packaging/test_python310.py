"""The device part under Python 3.10 (JetPack 6), with the versions that constraints.txt pins."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROBE = "import ensurepip, sqlite3, ssl, venv, sys; print(*sys.version_info[:2])"
INSTALL_SECONDS = 600
TEST_SECONDS = 600


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("python3.10"):
        yield Path(on_path)
    yield from sorted(Path.home().glob(".pyenv/versions/3.10*/bin/python"), reverse=True)


def _find_python310() -> Path | None:
    """An interpreter that really runs (a pyenv shim may not) and can make environments."""
    for candidate in _candidates():
        done = subprocess.run([candidate, "-c", PROBE], capture_output=True, text=True, check=False)
        if done.stdout.split() == ["3", "10"]:
            return candidate
    return None


@pytest.fixture(scope="module")
def python310(wheel: Path) -> Path:
    """The interpreter of an environment with the wheel; kept as long as its pins stand."""
    base = _find_python310()
    if base is None:
        pytest.skip("no working Python 3.10 interpreter on this machine")
    key = hashlib.sha256()
    for name in ("constraints.txt", "pyproject.toml"):
        key.update((ROOT / name).read_bytes())
    folder = ROOT / "build" / "venv310" / key.hexdigest()[:16]
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        shutil.rmtree(folder.parent, ignore_errors=True)
        _run([base, "-m", "venv", folder], INSTALL_SECONDS)
        _pip(python, f"{wheel}[cpu,serve]", "pytest", "hypothesis")
        (folder / ".installed").touch()
    _pip(python, "--no-deps", "--force-reinstall", str(wheel))
    return python


def _pip(python: Path, *arguments: str) -> None:
    constraints = ["--constraint", ROOT / "constraints.txt"]
    _run([python, "-m", "pip", "install", "--quiet", *constraints, *arguments], INSTALL_SECONDS)


def _run(command: list[str | Path], timeout: int, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV", "PYTEST"))}
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
            cwd=ROOT,
            env=environment | variables,
        )
    except subprocess.TimeoutExpired as error:
        printed = (error.stdout or b"").decode(errors="replace")
        pytest.fail(f"not done after {timeout} s: {command}\n{printed}", pytrace=False)
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout}", pytrace=False)
    return done.stdout


def test_environment_is_310_and_has_no_export_side(python310: Path) -> None:
    listed = _run([python310, "-m", "pip", "list", "--format=freeze"], TEST_SECONDS)
    installed = {line.partition("==")[0].lower() for line in listed.split()}
    assert "onnxruntime" in installed
    assert not installed & {"torch", "transformers", "onnx", "onnxscript", "optimum"}


def test_runtime_and_plugin_tests_pass_under_python_310(python310: Path, engine_dir: Path) -> None:
    # A test that stands still says where: its stacks are printed before the time is over.
    options = ["-q", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={TEST_SECONDS // 3}"]
    command = [python310, "-m", "pytest", "tests/runtime", "tests/plugins", *options]
    printed = _run(command, TEST_SECONDS, DIVPRUNE_TEST_ENGINE_DIR=str(engine_dir))
    sys.stdout.write(printed)
    assert re.search(r"\b[1-9]\d* passed", printed), printed
