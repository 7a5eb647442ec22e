"""Positions of the families whose rows are simply counted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["text_positions"]


def text_positions(num_rows: int) -> tuple[npt.NDArray[np.int64], int]:
    """int64 [1, L] counted from 0, and the position of the first token of the answer."""
    return np.arange(num_rows, dtype=np.int64)[np.newaxis], num_rows
