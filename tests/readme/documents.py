"""Commands in Markdown: which ones there are, and what a document says about testing them.

Fenced blocks marked ``bash`` hold commands, one a line (``\\`` continues, ``#`` comments);
in ``console`` blocks only the lines behind ``$`` are commands, the rest is output; ``python``
blocks are programs. An HTML comment on the line before the fence may say more:

    <!-- readme-test: parse-only -->      needs a GPU: only the arguments are parsed
    <!-- readme-test: exit-code=2 -->     every command of the block ends with this code
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Step", "read_steps"]

_BLOCK = re.compile(
    r"(?:^[ ]*<!--\s*readme-test:\s*(?P<directive>.*?)\s*-->[ ]*\n+)?"
    r"^(?P<indent>[ ]*)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_DIRECTIVE = re.compile(r"(?P<parse_only>parse-only)|exit-code=(?P<code>\d+)|")
_MISSPELT = ("sh", "shell", "zsh", "shell-session", "py")


@dataclass(frozen=True)
class Step:
    """One command line, or one Python program.

    Attributes:
        where: ``file:line`` of the block.
        language: ``bash`` or ``python``.
        text: The command without its continuation marks, or the program.
        parse_only: Whether its arguments are parsed and nothing is run.
        exit_code: The code it must end with.
    """

    where: str
    language: str
    text: str
    parse_only: bool = False
    exit_code: int = 0


def read_steps(path: Path) -> list[Step]:
    """All steps of a document, in order."""
    return list(_steps(path.read_text(encoding="utf-8"), path.name))


def _steps(markdown: str, name: str) -> Iterator[Step]:
    for block in _BLOCK.finditer(markdown):
        where = f"{name}:{markdown.count(chr(10), 0, block.start('language')) + 1}"
        language = block["language"]
        if language in _MISSPELT:
            raise ValueError(f"{where}: write bash, console or python instead of {language}")
        parse_only, exit_code = _parse_directive(block["directive"] or "", where)
        for kind, text in _split(language, block["text"]):
            yield Step(where, kind, text, parse_only, exit_code)


def _parse_directive(directive: str, where: str) -> tuple[bool, int]:
    match = _DIRECTIVE.fullmatch(directive)
    if match is None:
        raise ValueError(f"{where}: unknown readme-test directive: {directive}")
    return bool(match["parse_only"]), int(match["code"] or 0)


def _split(language: str, text: str) -> Iterator[tuple[str, str]]:
    if language == "python":
        yield "python", text
    if language not in ("bash", "console"):
        return
    joined = re.sub(r"\\\n\s*", "", text)
    for line in map(str.strip, joined.splitlines()):
        if language == "console" and not line.startswith("$ "):
            continue
        command = line.removeprefix("$ ")
        if command and not command.startswith("#"):
            yield "bash", command
