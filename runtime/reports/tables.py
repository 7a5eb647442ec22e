"""Tables of text: aligned for a terminal, or with pipes for Markdown."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Table", "escape_markdown", "plain", "to_markdown", "to_text"]

_GAP = "  "


@dataclass(frozen=True)
class Table:
    """A header and rows of cells; the first ``labels`` columns are text, the others numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    labels: int = 1


def to_text(table: Table) -> str:
    """Columns as wide as their widest cell, numbers aligned to the right."""
    rows = [tuple(map(_printable, row)) for row in (table.header, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_GAP.join("-" * width for width in widths)]
    lines += [_text_row(row, widths, table.labels) for row in rows]
    lines[0], lines[1] = lines[1], lines[0]
    return "\n".join(lines) + "\n"


def to_markdown(table: Table) -> str:
    """A table as GitHub draws it; what Markdown would read as mark-up is escaped."""
    ruler = tuple("---" if place < table.labels else "--:" for place in range(len(table.header)))
    rows = [tuple(map(escape_markdown, row)) for row in (table.header, *table.rows)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (rows[0], ruler, *rows[1:]))


def plain(text: str) -> str:
    """Text of a model or a stranger's file in one line and without control characters."""
    return _printable(" ".join(text.split()))


def _printable(text: str) -> str:
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def _text_row(row: tuple[str, ...], widths: list[int], labels: int) -> str:
    cells = [
        cell.ljust(width) if place < labels else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return _GAP.join(cells).rstrip()


def escape_markdown(cell: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    for mark in "\\`*_<[|":
        cell = cell.replace(mark, f"\\{mark}")
    return plain(cell)
