"""What ``--quant`` can spell, and what it says of anything else."""

from __future__ import annotations

import pytest

from divprune.runtime.directory.quant_scheme import QuantScheme, check_divisible, parse_scheme
from divprune.runtime.errors import CheckpointError, OptionError


@pytest.mark.parametrize(
    ("text", "scheme", "full"),
    [
        ("int4", QuantScheme(4, 32, symmetric=True), "int4-g32-sym"),
        ("int4-g128", QuantScheme(4, 128, symmetric=True), "int4-g128-sym"),
        ("int4-asym", QuantScheme(4, 32, symmetric=False), "int4-g32-asym"),
        ("int4-g64-asym", QuantScheme(4, 64, symmetric=False), "int4-g64-asym"),
        ("int4-g64-sym", QuantScheme(4, 64, symmetric=True), "int4-g64-sym"),
        ("int8", QuantScheme(8, None, symmetric=True), "int8"),
    ],
)
def test_every_spelling_is_read_and_written_in_full(
    text: str, scheme: QuantScheme, full: str
) -> None:
    assert parse_scheme(text) == scheme
    assert str(scheme) == full
    assert parse_scheme(full) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int3", r"--quant int3 is not known(.|\n)*int4-g128"),
        ("nf4", r"--quant nf4 is not known(.|\n)*int8"),
        ("", "is not known"),
        ("int4-g48", r"--quant int4-g48 (.|\n)*group size(.|\n)*32, 64, 128(.|\n)*48"),
        ("int4-sym-g32", "is not known"),
        ("int8-g32", r"--quant int8-g32 (.|\n)*one scale an output"),
        ("int8-asym", r"--quant int8-asym (.|\n)*no zero point"),
    ],
)
def test_anything_else_is_refused_with_what_there_is(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_scheme(text)


def test_groups_that_divide_are_accepted_and_others_name_those_that_do() -> None:
    check_divisible("w", 320, 64)
    check_divisible("w", 320, None)
    with pytest.raises(CheckpointError, match=r"groups of 128 do not divide w(.|\n)*32, 64 fit"):
        check_divisible("w", 320, 128)
    with pytest.raises(CheckpointError, match="--quant int8"):
        check_divisible("w", 100, 32)
