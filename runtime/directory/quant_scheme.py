"""Which numbers a quantised weight is made of, as ``--quant`` spells it.

int4                 groups of 32 inputs share a scale, zero point 8
int4-g128            groups of 128
int4-g64-asym        groups of 64, each with a zero point of its own
int8                 one scale an output, activations quantised as they come (dynamic)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from divprune.runtime.errors import CheckpointError, OptionError

__all__ = ["BLOCKS", "INT8", "QuantScheme", "check_divisible", "parse_scheme"]

BLOCKS = (32, 64, 128)
_EXAMPLES = "int4, int4-g128, int4-g64-asym (g32, g64 or g128; sym or asym) or int8"
_SPELLING = re.compile(r"int(?P<bits>\d+)(-g(?P<block>\d+))?(-(?P<kind>sym|asym))?")


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Bits of a weight, inputs that share a scale (None: a whole row), and the zero point.

    Symmetric means one zero point for all: 8 of the unsigned 4-bit codes, 0 of the signed
    8-bit ones.
    """

    bits: int
    block: int | None
    symmetric: bool

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise OptionError("the bit width is not known", expected="4 or 8", found=self.bits)
        if self.bits == 8 and (self.block is not None or not self.symmetric):
            raise OptionError(
                "8-bit weights have one scale an output and no zero point",
                expected="int8",
                found=str(self),
            )
        if self.bits == 4 and self.block not in BLOCKS:
            raise OptionError(
                "the group size is not known",
                expected="one of " + ", ".join(map(str, BLOCKS)),
                found=self.block,
            )

    def __str__(self) -> str:
        """The full spelling: ``int4-g32-sym``, ``int8``."""
        if self.block is None:
            return f"int{self.bits}"
        return f"int{self.bits}-g{self.block}-{'sym' if self.symmetric else 'asym'}"


INT8 = QuantScheme(8, None, symmetric=True)


def parse_scheme(text: str) -> QuantScheme:
    """Read the value of ``--quant``.

    Raises:
        OptionError: for an unknown method, bit width or group size, naming those there are.
    """
    match = _SPELLING.fullmatch(text)
    if match is None or match["bits"] not in ("4", "8"):
        raise OptionError(f"--quant {text} is not known", expected=_EXAMPLES, found=text)
    bits = int(match["bits"])
    block = int(match["block"]) if match["block"] else BLOCKS[0] if bits == 4 else None
    try:
        return QuantScheme(bits, block, symmetric=match["kind"] != "asym")
    except OptionError as error:
        raise OptionError(
            f"--quant {text} cannot be used: {error.what}",
            expected=error.expected,
            found=error.found,
        ) from None


def check_divisible(name: str, inputs: int, block: int | None, *, fix: str | None = None) -> None:
    """Refuse a weight whose inputs are no whole number of groups.

    ONNX Runtime would pad the last group; TensorRT has no such thing, and one rule for both is
    worth more than the few models that this leaves out.
    """
    if block is None or inputs % block == 0:
        return
    fitting = [str(size) for size in BLOCKS if inputs % size == 0]
    raise CheckpointError(
        f"groups of {block} do not divide {name}",
        expected=f"{inputs} inputs in whole groups ({', '.join(fitting) or 'none of'}"
        f"{' fit' if fitting else ' ' + ', '.join(map(str, BLOCKS)) + ' fits'})",
        found=f"{inputs / block:g} groups",
        fix=fix
        or (f"--quant int4-g{fitting[0]}" if fitting else "--quant int8, or leave --quant out"),
    )
