"""VTW: no visual token passes layer L (arXiv 2405.05803).

By then the text has taken from the picture what it needs, its authors argue; what follows has
only text to process. There is nothing to choose, so there is no graph, and no ``--keep``.

The default layer is the authors' (15, for the 32 layers of a 7B model).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.in_llm import InLLMSelector
from divprune.export.selection.sizes import Size
from divprune.runtime.errors import OptionError

__all__ = ["VTW"]


class VTW(InLLMSelector):
    """Withdraws every visual token: K is 0."""

    name: ClassVar[str] = "vtw"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = False
    default_layer: ClassVar[int] = 15
    inputs: ClassVar[tuple[str, ...]] = ()

    def select(
        self, values: Mapping[str, npt.NDArray[Any]], num_tokens: int, num_kept: int
    ) -> npt.NDArray[np.int64]:
        """No index: int64 [0].

        Raises:
            OptionError: if a token is to be kept.
        """
        _check_none(num_kept)
        return np.empty(0, np.int64)

    def regret(
        self,
        values: Mapping[str, npt.NDArray[Any]],
        num_tokens: int,
        order: npt.NDArray[np.int64],
    ) -> float:
        """0 for the empty order; every other one is wrong."""
        return float("inf") if len(order) else 0.0

    def write(
        self, op: GraphWriter, values: Mapping[str, ir.Value], num_tokens: Size, num_kept: Size
    ) -> ir.Value:
        """An empty constant, for who asks for a graph all the same."""
        _check_none(num_kept)
        return op.constant(np.empty(0, np.int64), "nothing")


def _check_none(num_kept: Size) -> None:
    if num_kept != 0:
        raise OptionError("vtw keeps no visual token", expected=0, found=num_kept)
