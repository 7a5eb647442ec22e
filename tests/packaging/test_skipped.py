"""The plugin that fails a run for a skip nobody has allowed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.skipped import ALLOWED, allowed_reasons, is_allowed

ROOT = Path(__file__).parents[2]
MODULES = {
    "marker": "import pytest\n\n\n@pytest.mark.skip(reason={reason!r})\ndef test_it(): ...\n",
    "call": "import pytest\n\n\ndef test_it():\n    pytest.skip({reason!r})\n",
    "collection": "import pytest\n\npytest.importorskip('no_such', reason={reason!r})\n",
}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tests.skipped", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(folder), "-c", str(folder / "pytest.ini"), *options, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_skip_nobody_allowed_fails_the_run(tmp_path, options):
    def write(reason: str) -> None:
        for kind, text in MODULES.items():
            (tmp_path / f"test_{kind}.py").write_text(text.format(reason=f"{reason} ({kind})"))

    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_other.py").write_text("def test_passes(): ...\n")
    write("no NVIDIA GPU here: none")
    assert run(tmp_path, *options).returncode == 0
    write("no Chromium on this machine")
    done = run(tmp_path, *options)
    assert done.returncode == 1, done.stdout
    told = done.stdout.split("not in tests/allowed_skips.txt")[1]
    for kind in MODULES:
        assert f"no Chromium on this machine ({kind})" in told


def test_every_allowed_reason_is_one_that_a_test_gives():
    """Those that end with what is found are cut off where that begins."""
    given = "\n".join(
        file.read_text(encoding="utf-8")
        for file in (ROOT / "tests").rglob("*.py")
        if file.name != Path(__file__).name
    )
    allowed = allowed_reasons(ALLOWED.read_text(encoding="utf-8"))
    assert [reason for reason in allowed if reason not in given] == []
    assert is_allowed("Skipped: no NVIDIA GPU here: no driver", allowed)
    assert not is_allowed("Skipped: there is no NVIDIA GPU here", allowed)
