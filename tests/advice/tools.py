"""Run a tool in process, see where its error was made, and do what its ``fix:`` says."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

from divprune.runtime.errors import DivPruneError
from tests.advice.sites import ROOT, Site, find_sites

__all__ = [
    "Refusal",
    "assert_gave",
    "attempt",
    "build",
    "follow",
    "recorded",
    "refused",
    "site_of",
]

_TOOLS = {
    name: f"divprune.runtime.cli.{name.removeprefix('divprune-')}"
    for name in (
        *("divprune-run", "divprune-plan", "divprune-bench", "divprune-eval", "divprune-compare"),
        *("divprune-batch", "divprune-build", "divprune-serve"),
    )
} | {"divprune-export": "divprune.export.cli"}


@dataclass(frozen=True)
class Refusal:
    """What a tool said.

    Attributes:
        code: Its exit code.
        message: All of stderr.
        fix: The last advice in it; empty without one.
        keys: Keys of the sites in which errors were made, the last one that of ``fix``.
    """

    code: int
    message: str
    fix: str
    keys: tuple[str, ...]


def attempt(words: list[str], stdin: bytes | None = b"", *, whole: bool = True) -> Refusal:
    """Run a tool by its name and arguments; of an export not ``whole``, all but the graphs.

    Standard input is closed where ``stdin`` is None.
    """
    main: Callable[[list[str]], int] = import_module(_TOOLS[words[0]]).main
    if words[0] == "divprune-export" and not whole:
        main = _all_but_graphs
    said = io.StringIO()
    quiet = contextlib.redirect_stdout(io.StringIO())
    with recorded() as keys, _piped(stdin), contextlib.redirect_stderr(said), quiet:
        try:
            code = main(words[1:])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
    return Refusal(code, said.getvalue(), _advice_in(said.getvalue()), tuple(keys))


def build(path: Path, *options: str) -> list[str]:
    """The words that build the engines of a directory."""
    return ["divprune-build", str(path), "-q", *options]


def assert_gave(refusal: Refusal, key: str) -> None:
    """Check that a tool refused, and that it was the error of a site that gave its advice."""
    assert refusal.code == 2, refusal.message
    assert key in refusal.keys, (refusal.keys, refusal.message)


def _advice_in(message: str) -> str:
    """The last advice that a message gives; empty without one."""
    advice = re.findall(r"(?m)^  fix: {6}(.*(?:\n    .*)*)", message)
    return advice[-1] if advice else ""


def _all_but_graphs(words: list[str]) -> int:
    """An export up to its first graph: options, checkpoint, host files, prompt, cache, weights."""
    from divprune.export import cli, export_model
    from divprune.export.planning.plan import ExportPlan

    def read_weights(plan: ExportPlan, *_: object) -> None:
        for name in plan.tensor_names:
            if not plan.weights.is_quantized(name):
                plan.weights.read(name)
        raise SystemExit(0)

    with mock.patch.object(export_model, "_write_graphs", read_weights):
        return cli.main(words)


def refused(call: Callable[[], object]) -> Refusal:
    """What a call of the Python interface raised, as a tool would have said it."""
    with recorded() as keys, pytest.raises(DivPruneError) as caught:
        call()
    return Refusal(2, str(caught.value), caught.value.fix or "", tuple(keys))


def follow(words: list[str], refusal: Refusal) -> list[str]:
    """The command line as the first of the advised ways has it.

    Raises:
        ValueError: for advice that is no option and no command: a test of its own follows it.
    """
    first = re.split(r",? or |, and |; |, without |, which | if that| keeps ", refusal.fix)[0]
    if left := re.fullmatch(r"leave (it|--[\w-]+) out.*", first):
        named = re.search(r"--[\w-]+", refusal.message)
        assert named is not None
        return _without(words, named[0] if left[1] == "it" else left[1])
    if first.startswith("divprune-"):
        return _command(words, shlex.split(first))
    if not first.removeprefix("add ").startswith("--"):
        raise ValueError(f"no option and no command: {first}")
    changed = words
    options = re.findall(r"(--[\w-]+)((?: (?!--)(?:'[^']*'|\"[^\"]*\"|\S+))?)", first)
    for option, value in options:
        changed = [*_without(changed, option), option, *shlex.split(value)]
    return changed


def _command(words: list[str], advised: list[str]) -> list[str]:
    """An export is made, and the tool asked again about it; any other command is the new one."""
    if advised[0] != "divprune-export" or words[0] == "divprune-export":
        return advised
    if "--output" not in advised:
        advised = [*advised, "--output", "advised-engine"]
    done = attempt([*advised, "--no-verify", "-q"])
    assert done.code == 0, done.message
    output = advised[advised.index("--output") + 1]
    return [words[0], output, *words[2:]]


def _without(words: list[str], option: str) -> list[str]:
    """The words without an option and its value, however often it is there."""
    while option in words:
        at = words.index(option)
        has_value = at + 1 < len(words) and not words[at + 1].startswith("--")
        words = words[:at] + words[at + 1 + has_value :]
    return words


def site_of(path: str, line: int, sites: list[Site]) -> Site | None:
    """The innermost call with ``fix=`` at a line of a file."""
    inside = [s for s in sites if s.path == path and s.first <= line <= s.last]
    return min(inside, key=lambda s: s.last - s.first, default=None)


@contextlib.contextmanager
def recorded() -> Iterator[list[str]]:
    """The keys of sites whose errors are made meanwhile, behind those that pass them the advice."""
    sites, keys, original = find_sites(), [], DivPruneError.__init__

    def record(self: DivPruneError, what: str, **fields: object) -> None:
        original(self, what, **fields)  # type: ignore[arg-type]
        frame, passing = sys._getframe(1), []
        while self.fix is not None and frame is not None:
            file = Path(frame.f_code.co_filename).resolve()
            if file.is_relative_to(ROOT):
                path = file.relative_to(ROOT).as_posix()
                if site := site_of(path, frame.f_lineno, sites):
                    passing.append(site.key)
            frame = frame.f_back
        keys.extend(reversed(passing))

    DivPruneError.__init__ = record  # type: ignore[method-assign]
    try:
        yield keys
    finally:
        DivPruneError.__init__ = original  # type: ignore[method-assign]


@contextlib.contextmanager
def _piped(data: bytes | None) -> Iterator[None]:
    before = sys.stdin
    sys.stdin = None if data is None else io.TextIOWrapper(io.BytesIO(data))
    try:
        yield
    finally:
        sys.stdin = before
