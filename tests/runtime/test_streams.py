"""Standard streams that are closed, full or of another encoding change no exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="no device that is always full")
BODY = """
import sys
from divprune.runtime.cli.main_guard import ToolParser, add_common_options, run_tool
from divprune.runtime.errors import OptionError

def body(arguments):
    if arguments.what == "error":
        raise OptionError("wrong: \\x1b[31m", found="\\udcff")
    if arguments.what == "bug":
        raise ZeroDivisionError
    print("answer \\u00fc \\udcff")
    print("note", file=sys.stderr)
    # What a library opens must not take the place of a closed stream.
    file = open("opened.txt", "w")
    assert file.fileno() > 2, file.fileno()
    return 0

parser = ToolParser(prog="divprune-x")
parser.add_argument("what", nargs="?")
add_common_options(parser)
sys.exit(run_tool(parser, body))
"""


def run(
    redirect: str, tmp_path: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    script = tmp_path / "tool.py"
    script.write_text(BODY, encoding="utf-8")
    command = f'"$0" "$@" {redirect}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable, str(script), *arguments],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        check=False,
    )


@pytest.mark.parametrize("redirect", ["", ">&-", "<&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_change_no_exit_code(redirect: str, tmp_path: Path) -> None:
    done = run(redirect, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout in (b"", "answer ü \\udcff\n".encode())
    failed = run(redirect, tmp_path, "error")
    assert (failed.returncode, failed.stdout) == (2, b"")
    assert (run(redirect, tmp_path, "--nothing").returncode) == 2
    assert (run(redirect, tmp_path, "--version").returncode) == 0
    assert (tmp_path / "opened.txt").read_bytes() == b""


@needs_full
def test_full_standard_error_makes_a_good_run_no_worse(tmp_path: Path) -> None:
    assert run("2>/dev/full", tmp_path).returncode == 0
    assert run("2>/dev/full", tmp_path, "error").returncode == 2
    assert run("2>/dev/full", tmp_path, "bug").returncode == 1


@needs_full
@pytest.mark.parametrize("arguments", [[], ["--version"]])
def test_full_standard_output_is_the_users_to_mend(tmp_path: Path, arguments: list[str]) -> None:
    done = run(">/dev/full", tmp_path, *arguments)
    assert done.returncode == 2
    assert b"no space left" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(tmp_path: Path, encoding: str) -> None:
    done = run("", tmp_path, PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 0
    assert done.stdout.decode(encoding) in ("answer ü \\udcff\n", "answer \\xfc \\udcff\n")


def test_escape_codes_in_messages_are_shown(tmp_path: Path) -> None:
    done = run("", tmp_path, "error")
    assert done.stderr == b"error: wrong: \\x1b[31m\n  found:    \\udcff\n"


def test_a_usage_error_looks_like_the_others(tmp_path: Path) -> None:
    done = run("", tmp_path, "--\x1b[31m")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: unrecognized arguments: --\\x1b[31m\n  fix:      ")
    assert b"divprune-x --help" in done.stderr
