"""What all command-line tools share: exit codes, logging and ``--version``."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from divprune.runtime.backends import RESIDENCIES
from divprune.runtime.errors import DivPruneError

__all__ = ["add_common_options", "add_memory_options", "configure_logging", "run_guarded"]

EXIT_BUG = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
_OUT_OF_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def run_guarded(body: Callable[[], int]) -> int:
    """Run the body of a tool and return its exit code.

    What the user can mend is printed and gives 2; Ctrl-C gives 130 and a reader that has gone
    away 141, as the shell reports these signals; anything else is a bug: a traceback and 1.
    """
    try:
        code = body()
        sys.stdout.flush()
    except DivPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit, which must not fail a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OUT_OF_SPACE:
            print(f"error: no space left on the device\n  found:    {error}", file=sys.stderr)
            return EXIT_USER
        return _report_bug()
    return code


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, ``--quiet`` and ``--version``."""
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    volume.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument("--version", action=_ShowVersion, help="print the version and exit")


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


def _report_bug() -> int:
    traceback.print_exc()
    print("this is a bug in divprune-edge; please report it with these lines", file=sys.stderr)
    return EXIT_BUG
