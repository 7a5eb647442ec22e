"""Turn a keep ratio into a count of tokens: the only place where that is rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from divprune.runtime.errors import OptionError

if TYPE_CHECKING:
    from divprune.runtime.directory.manifest import Manifest

__all__ = [
    "AutoKeep",
    "Keep",
    "describe_keep",
    "exported_count",
    "kept_count",
    "parse_keep",
    "parse_keeps",
    "validate_keep",
]

_AUTO = "auto:"


@dataclass(frozen=True, slots=True)
class AutoKeep:
    """Keep as many tokens as a picture needs.

    Attributes:
        cover: The cosine similarity, in (0, 1], that every dropped token must have to some
            kept one.
    """

    cover: float

    def __post_init__(self) -> None:
        if not 0 < self.cover <= 1:
            raise OptionError(
                "--keep auto: takes a similarity",
                expected="auto:C with 0 < C <= 1 (auto:0.8 keeps what every dropped token "
                "resembles to 0.8)",
                found=str(self),
            )

    def __str__(self) -> str:
        return f"{_AUTO}{self.cover}"


Keep: TypeAlias = "float | AutoKeep"


def parse_keep(value: float | str | AutoKeep) -> Keep:
    """A fraction, or ``auto:C``, as ``--keep`` and the API spell it.

    Raises:
        OptionError: for anything else, and for values out of range.
    """
    if isinstance(value, AutoKeep):
        return value
    try:
        return _read_keep(value)
    except (TypeError, ValueError) as error:
        raise OptionError(
            "--keep is not a number",
            expected="a fraction kept such as 0.1, or auto:C such as auto:0.8",
            found=repr(value),
        ) from error


def _read_keep(value: float | str) -> Keep:
    if isinstance(value, str) and value.startswith(_AUTO):
        return AutoKeep(float(value.removeprefix(_AUTO)))
    return validate_keep(float(value))


def parse_keeps(text: str) -> tuple[Keep, ...]:
    """Fractions and similarities from a list such as ``1.0,0.25,auto:0.8``.

    Raises:
        OptionError: if one of them is neither, or out of range.
    """
    try:
        return tuple(_read_keep(word.strip()) for word in text.split(","))
    except ValueError as error:
        raise OptionError(
            "--keep is not a list of fractions",
            expected="such as 1.0,0.25,0.1 or 0.1,auto:0.8",
            found=repr(text),
        ) from error


def validate_keep(keep: float) -> float:
    """Check that ``keep`` is the fraction of visual tokens to keep, in (0, 1].

    Raises:
        OptionError: for NaN, infinities, zero, negative numbers and numbers above 1; for
            what looks like a percentage the message guesses the fraction that was meant.
    """
    expected = "a fraction kept, 0 < keep <= 1 (0.1 keeps 10 % of the visual tokens)"
    if not math.isfinite(keep):
        raise OptionError("--keep is not a number", expected=expected, found=keep)
    if keep <= 0:
        raise OptionError("--keep must be above 0", expected=expected, found=keep)
    if keep > 1:
        guess = f"--keep {keep / 100:g} if {keep:g} % was meant" if keep <= 100 else None
        raise OptionError("--keep must not be above 1", expected=expected, found=keep, fix=guess)
    return float(keep)


def kept_count(keep: float, num_image_tokens: int) -> int:
    """Number of tokens kept: ``max(1, round(keep * N))``, halves to even.

    This is the rounding of DivPrune (arXiv 2503.02175) as its authors run it,
    with a floor of one token.

    Raises:
        OptionError: if ``keep`` is outside (0, 1].
    """
    return max(1, round(validate_keep(keep) * num_image_tokens))


def exported_count(manifest: Manifest, num_image_tokens: int) -> int:
    """K of N tokens as the directory was exported: what its vision graph selects."""
    selector = manifest.selector
    if num_image_tokens == selector.num_image_tokens or selector.keep == 0:
        return min(selector.num_kept, num_image_tokens)  # fewer than it rounds to: ``downsample``
    return kept_count(selector.keep, num_image_tokens)


def describe_keep(num_kept: int, num_image_tokens: int) -> str:
    """The sentence every report uses: ``58 of 576 kept, 89.9 % removed``."""
    removed = 100 * (num_image_tokens - num_kept) / num_image_tokens
    return f"{num_kept} of {num_image_tokens} kept, {removed:.1f} % removed"
