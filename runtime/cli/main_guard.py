"""Shared by all command-line tools: exit codes, streams, logging and ``--version``."""

from __future__ import annotations

import argparse
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from divprune.runtime.backends import RESIDENCIES
from divprune.runtime.cli.streams import discard_stdout, prepare_streams
from divprune.runtime.errors import DivPruneError, printable

__all__ = [
    "ToolParser",
    "add_common_options",
    "add_memory_options",
    "configure_logging",
    "fraction",
    "run_guarded",
    "run_tool",
]

EXIT_BUG = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_LESS_MEMORY = "divprune-plan says what a model needs; --residency sequential needs less"
# What the machine refuses, whatever the program does.
_REFUSALS = {
    getattr(errno, name): what
    for name, what in {
        "ENOSPC": "no space left on the device",
        "EDQUOT": "no space left on the device",
        "EFBIG": "a file would become larger than is allowed here",
        "EROFS": "the file system cannot be written to",
        "EACCES": "access is denied",
        "EPERM": "access is denied",
        "EMFILE": "too many files are open",
        "ENFILE": "too many files are open",
        "ENOMEM": "there is not enough memory",
    }.items()
    if hasattr(errno, name)
}


class ToolParser(argparse.ArgumentParser):
    """A parser whose errors look like all others."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the options are listed; leave with 2."""
        print(f"error: {printable(message)}\n  fix:      {self.prog} --help", file=sys.stderr)
        raise SystemExit(EXIT_USER)


def run_tool(
    parser: argparse.ArgumentParser,
    body: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, run the body and return the exit code.

    Raises:
        SystemExit: after ``--help``, ``--version`` and usage errors.
    """
    prepare_streams()

    def parsed() -> int:
        arguments = parser.parse_intermixed_args(argv)
        configure_logging(verbose=arguments.verbose, quiet=arguments.quiet)
        return body(arguments)

    return run_guarded(parsed)


def run_guarded(body: Callable[[], int]) -> int:
    """Run the body of a tool and return its exit code.

    What the user can mend is printed and gives 2; Ctrl-C gives 130 and a reader that has gone
    away 141, as the shell reports these signals; anything else is a bug: a traceback and 1.
    """
    try:
        try:
            code = body()
        except SystemExit:  # behind --help and --version, which a full disk may not take either
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except DivPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        return EXIT_BROKEN_PIPE
    except MemoryError:
        return _report_refusal("there is not enough memory", None, _LESS_MEMORY)
    except Exception as error:
        what = _REFUSALS.get(error.errno or 0) if isinstance(error, OSError) else None
        if what is None:
            return _report_bug()
        return _report_refusal(what, error)
    return code


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, ``--quiet`` and ``--version``."""
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    volume.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--version", action=_ShowVersion, help="print the version and exit")


def fraction(text: str) -> float:
    """The type of a ``--keep`` that stands for all pictures; its range is for others to check.

    Raises:
        ArgumentTypeError: for a similarity, and for what is no number.
    """
    if text.startswith("auto:"):
        raise argparse.ArgumentTypeError(
            f"{text} is a choice of each run, which has a picture: here goes a fraction, the most "
            "that any run will keep, such as 0.25"
        )
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add what decides how much memory a run takes: ``--residency`` and ``--max-seq-len``."""
    parser.add_argument(
        "--residency",
        choices=RESIDENCIES,
        default="concurrent",
        help="sequential: vision or LLM in memory, one at a time, loaded for each answer"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--max-seq-len",
        type=int,
        metavar="N",
        help="length of the KV cache, prompt and answer together (default: as exported)",
    )


def configure_logging(*, verbose: bool, quiet: bool) -> None:
    """Send log messages of this package to stderr."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    logging.getLogger("divprune").setLevel(level)


class _ShowVersion(argparse.Action):
    """Like argparse's own, but the version is looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=options.get("help"))

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and leave."""
        from divprune.runtime import __version__

        print(f"{parser.prog} {__version__}")
        parser.exit()


class _Printable(logging.Formatter):
    """Names of files and tensors stand in messages: their escape codes are shown, not obeyed."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _report_refusal(what: str, found: object, fix: str | None = None) -> int:
    error = DivPruneError(what, found=found, fix=fix)
    print(f"error: {error}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what refused was standard output itself
        discard_stdout()
    return EXIT_USER


def _report_bug() -> int:
    traceback.print_exc()
    print("this is a bug in divprune-edge; please report it with these lines", file=sys.stderr)
    return EXIT_BUG
