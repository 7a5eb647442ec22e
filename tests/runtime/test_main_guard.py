from __future__ import annotations

import argparse
import errno
import logging
from importlib.metadata import version

import pytest

from divprune.runtime.cli.main_guard import add_common_options, configure_logging, run_guarded
from divprune.runtime.errors import OptionError


def raising(error: BaseException) -> int:
    def body() -> int:
        raise error

    return run_guarded(body)


def test_the_code_of_the_body_is_the_exit_code():
    assert run_guarded(lambda: 0) == 0


def test_what_the_user_can_mend_is_printed_without_a_traceback(capsys):
    assert raising(OptionError("no such thing", expected="a", found="b", fix="do c")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: no such thing\n  expected: a\n  found:    b\n  fix:      do c\n"


def test_a_full_disk_is_the_users_to_mend(capsys):
    assert raising(OSError(errno.ENOSPC, "No space left on device", "model.data")) == 2
    err = capsys.readouterr().err
    assert "no space left" in err
    assert "model.data" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError(errno.EIO, "broken")])
def test_a_bug_shows_its_traceback(capsys, error):
    assert raising(error) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert type(error).__name__ in err
    assert "report it" in err


def test_ctrl_c_is_130_without_a_traceback(capsys):
    assert raising(KeyboardInterrupt()) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, shown",
    [([], ["warning", "error"]), (["-v"], ["info", "warning", "error"]), (["-q"], ["error"])],
)
def test_flags_choose_what_is_logged_to_stderr(capsys, flags, shown):
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    arguments = parser.parse_args(flags)
    configure_logging(verbose=arguments.verbose, quiet=arguments.quiet)
    log = logging.getLogger("divprune.test")
    for level in ("info", "warning", "error"):
        getattr(log, level)("a message of level %s", level)

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rpartition(" ")[2] for line in err.splitlines()] == shown


def test_version_is_that_of_the_distribution(capsys):
    parser = argparse.ArgumentParser(prog="divprune-x")
    add_common_options(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"divprune-x {version('divprune-edge')}\n"


def test_verbose_and_quiet_exclude_each_other():
    parser = argparse.ArgumentParser()
    add_common_options(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["-v", "-q"])
    assert caught.value.code == 2
