"""As many tokens at random: the baseline that every table needs.

Random selection loses only a few points to published methods (DivPrune, arXiv 2503.02175,
table 3), so a method is worth its cost by what it has over this one. The permutation of all N
tokens is drawn once, at export, from the seed, and stored in the graph: every picture keeps
the same places, and a smaller count keeps a prefix of them. Where N varies, it is the
permutation of the largest N without the tokens that a picture has not.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from divprune.export.graphs.writer import GraphWriter
from divprune.export.selection.fixed_order import FixedOrder

__all__ = ["Random"]


class Random(FixedOrder):
    """The first K of a permutation of all tokens that ``--seed`` fixes."""

    name: ClassVar[str] = "random"
    version: ClassVar[int] = 1
    nested: ClassVar[bool] = True
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = False
    any_size: ClassVar[bool] = True

    @property
    def parameters(self) -> dict[str, Any]:
        """The seed, and the largest N where it varies; with PCG64 they give the permutation."""
        most = self.setting.max_tokens
        return {"seed": self.setting.seed} | ({} if most is None else {"max_tokens": most})

    def order(self, num_tokens: int, num_kept: int) -> npt.NDArray[np.int64]:
        """The first K below N of ``numpy.random.Generator(PCG64(seed)).permutation(largest N)``."""
        permutation = self._permutation(self.setting.max_tokens or num_tokens)
        return permutation[permutation < num_tokens][:num_kept]

    def write_order(self, op: GraphWriter, num_tokens: ir.Value, num_kept: ir.Value) -> ir.Value:
        """The same as a subgraph: the K tokens whose places in the permutation come first.

        Raises:
            ValueError: if the largest N is not known.
        """
        if self.setting.max_tokens is None:
            raise ValueError("the largest number of visual tokens is not set")
        places = np.argsort(self._permutation(self.setting.max_tokens)).astype(np.int32)
        start, axis = (op.constant(np.array([n], np.int64), f"from_{n}") for n in (0, 1))
        table = op.constant(places[np.newaxis], "places")
        present = op("Slice", table, start, num_tokens, axis)
        # They are all different: no tie is left to the runtime.
        _, tokens = op.multi("TopK", present, num_kept, num_outputs=2, largest=0, sorted=1)
        return op("Reshape", tokens, op.constant(np.array([-1], np.int64), "shape"))

    def _permutation(self, length: int) -> npt.NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64(self.setting.seed))
        return generator.permutation(length).astype(np.int64)
