"""What a selector between decoder layers is: as ``protocol.py``, for another place.

Layers are numbered from 0. A selector at layer L sees what enters layer L, which is
``hidden_states[L]`` of transformers: layers 0 to L - 1 process every token, the others only the
tokens that are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx_ir as ir

    from divprune.export.graphs.writer import GraphWriter
    from divprune.export.selection.sizes import Size

__all__ = ["SELECTION_INPUTS", "InLLMSelector"]

SELECTION_INPUTS: Mapping[str, str] = MappingProxyType(
    {
        "visual_states": "float [N, hidden], what enters layer L for the N tokens of one picture",
        "last_state": "float [1, hidden], the same for the last token of the prompt",
        "last_query": "float [1, 1, heads * head dim], that token's rotated query in layer L - 1",
        "keys": "float [1, KV heads, S_max, head dim], the key cache of layer L - 1",
        "visual_slots": "int64 [N], cache slots of the picture's tokens, ascending",
        "num_slots": "int64 [1], slots that the prompt fills; the others may hold anything",
    }
)
"""What a selection graph can ask for, by the name of its input; the runtime feeds it by name."""


class InLLMSelector(ABC):
    """Chooses K of the N visual tokens of one picture, the same ones in NumPy and in ONNX.

    Attributes:
        name: What ``--selector`` calls it.
        version: Raised whenever the same numbers may give other indices than before.
        nested: The first k of K choices are exactly what k alone would choose.
        merges: Never: what is kept has a key and a value in every layer already.
        inside_llm: Always.
        default_layer: ``--layer`` where none is given.
        inputs: Names of ``SELECTION_INPUTS`` that the graph reads, one with N rows among them;
            none, no graph.
        layer: L.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    nested: ClassVar[bool]
    merges: ClassVar[bool] = False
    inside_llm: ClassVar[bool] = True
    default_layer: ClassVar[int]
    inputs: ClassVar[tuple[str, ...]]

    def __init__(self, layer: int | None = None) -> None:
        self.layer = self.default_layer if layer is None else layer

    @property
    def parameters(self) -> dict[str, Any]:
        """What the manifest records beside the name: the flags of the export."""
        return {"layer": self.layer}

    @abstractmethod
    def select(
        self, values: Mapping[str, npt.NDArray[Any]], num_tokens: int, num_kept: int
    ) -> npt.NDArray[np.int64]:
        """The reference: the arrays of ``inputs`` to indices int64 [K], in the order chosen.

        Raises:
            NumericalError: if a number is NaN or Inf.
            OptionError: if ``num_kept`` is not in 1..N.
        """

    @abstractmethod
    def regret(
        self,
        values: Mapping[str, npt.NDArray[Any]],
        num_tokens: int,
        order: npt.NDArray[np.int64],
    ) -> float:
        """Largest regret of a choice in ``order``: its score's distance to the best available.

        0 for the reference's own order; about 1e-6 where float32 products were rounded
        otherwise and a near tie went the other way; large for a wrong choice.
        """

    @abstractmethod
    def write(
        self, op: GraphWriter, values: Mapping[str, ir.Value], num_tokens: Size, num_kept: Size
    ) -> ir.Value:
        """Append the same as a subgraph; what is float in ``values`` is float32 already.

        N and K are numbers, or int64 [1] that the graph computes from shapes.

        Returns:
            int64 [K], in the order chosen.

        Raises:
            OptionError: if ``num_kept`` is not in 1..N.
        """
