"""As many tokens at random: the baseline that every table needs.

Random selection loses only a few points to published methods (DivPrune, arXiv 2503.02175,
table 3), so a method is worth its cost by what it has over this one. The permutation of all N
tokens is drawn once, at export, from the seed, and stored in the graph: every picture keeps
the same places, and a smaller count keeps a prefix of them.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from divprune.export.selection.fixed_order import FixedOrder

__all__ = ["Random"]


class Random(FixedOrder):
    """The first K of a permutation of all tokens that ``--seed`` fixes."""

    name: ClassVar[str] = "random"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = False

    @property
    def parameters(self) -> dict[str, Any]:
        """The seed; with NumPy's PCG64 it gives the permutation again."""
        return {"seed": self.setting.seed}

    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        """The first K of ``numpy.random.Generator(PCG64(seed)).permutation(N)``."""
        generator = np.random.Generator(np.random.PCG64(self.setting.seed))
        return generator.permutation(num_tokens)[:num_kept].astype(np.int64)
