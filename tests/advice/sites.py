"""Every place in the packages where an error is given a ``fix:``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["FOLDERS", "Site", "find_sites"]

ROOT = Path(__file__).parents[2]
FOLDERS = ("configs", "export", "plugins", "runtime")


@dataclass(frozen=True)
class Site:
    """One call with ``fix=``.

    Attributes:
        path: File, relative to the repository.
        function: The function or method around it.
        advice: The expression that is printed, as it stands there.
        first: First line of the call.
        last: Last line of it.
    """

    path: str
    function: str
    advice: str
    first: int
    last: int

    @property
    def key(self) -> str:
        """What does not change when lines move."""
        return f"{self.path}::{self.function}::{self.advice}"


@cache
def find_sites() -> list[Site]:
    """All of them; a parameter that is passed on is no advice of its own.

    Parsed once a session: that takes longer than most of what is followed.
    """
    files = (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))
    return [site for file in files for site in _sites_of(file)]


def _sites_of(file: Path) -> Iterator[Site]:
    path = file.relative_to(ROOT).as_posix()
    yield from _walk(ast.parse(file.read_text(encoding="utf-8")), path, (), frozenset())


def _walk(
    node: ast.AST, path: str, names: tuple[str, ...], passed: frozenset[str]
) -> Iterator[Site]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        names = (*names, node.name)
    if isinstance(node, ast.FunctionDef):
        arguments = node.args
        passed = frozenset(
            each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
        )
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            advice = ast.unparse(keyword.value)
            if keyword.arg == "fix" and advice != "None" and advice not in passed:
                last = node.end_lineno or node.lineno
                yield Site(path, ".".join(names), advice, node.lineno, last)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, path, names, passed)
