"""Checks of every selector's inputs: a count in 1..N, and finite numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from divprune.runtime.errors import NumericalError, OptionError

__all__ = ["check_count", "check_finite"]


def check_count(num_kept: int, num_tokens: int) -> None:
    """Check that K is in 1..N.

    Raises:
        OptionError: if it is not.
    """
    if not 1 <= num_kept <= num_tokens:
        raise OptionError(
            "That many visual tokens cannot be kept",
            expected=f"1 to {num_tokens}",
            found=num_kept,
        )


def check_finite(what: str, rows: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """The rows [N] or [N, D] as float32.

    Raises:
        NumericalError: naming the first row with a NaN or Inf, or a norm beyond float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = np.asarray(rows, dtype=np.float32)
        norms = np.sqrt(np.square(numbers).reshape(len(numbers), -1).sum(axis=1))
    bad = np.flatnonzero(~np.isfinite(norms))
    if bad.size:
        raise NumericalError(
            f"The {what} cannot be compared: NaN or Inf, or a norm beyond float32",
            expected=f"{len(numbers)} rows of finite numbers",
            found=f"{bad.size} bad rows, the first is row {bad[0]}",
            fix="export with --dtype fp32 if the checkpoint overflows fp16",
        )
    return numbers
