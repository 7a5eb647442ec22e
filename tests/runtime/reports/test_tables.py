from __future__ import annotations

from divprune.runtime.reports.tables import (
    Table,
    escape_markdown,
    plain,
    to_markdown,
    to_text,
)

TABLE = Table(("stage", "keep", "ms"), (("vision", "1.0", "12"), ("", "0.1", "7.5")), labels=2)


def test_text_columns_are_as_wide_as_their_widest_cell_and_numbers_end_together():
    assert to_text(TABLE) == (
        "stage   keep   ms\n"
        "------  ----  ---\n"
        "vision  1.0    12\n"
        "        0.1   7.5\n"
    )  # fmt: skip


def test_markdown_aligns_numbers_to_the_right():
    assert to_markdown(TABLE) == (
        "| stage | keep | ms |\n"
        "| --- | --- | --: |\n"
        "| vision | 1.0 | 12 |\n"
        "|  | 0.1 | 7.5 |\n"
    )  # fmt: skip


def test_a_table_without_rows_has_its_header():
    assert to_text(Table(("a", "bc"), ())) == "a  bc\n-  --\n"


def test_a_cell_cannot_break_out_of_a_table():
    table = Table(("a",), (("x|y\n<b>*_`[z](u)",),))
    assert to_markdown(table).splitlines()[2] == r"| x\|y \<b>\*\_\`\[z](u) |"
    assert "\n" not in escape_markdown("a\nb")


def test_control_characters_never_reach_a_terminal():
    assert "\x1b" not in to_text(Table(("a",), (("\x1b[2J",),)))
    assert plain("a\r\nb\t\x1b[31mc\0") == "a b \ufffd[31mc\ufffd"
    assert plain("caf\u00e9 \u7eff") == "caf\u00e9 \u7eff"
