"""The selector protocol: the NumPy reference of a method beside its ONNX subgraph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    from divprune.export.graphs.writer import GraphWriter
    from divprune.export.selection.sizes import Size

__all__ = [
    "NO_ARRAYS",
    "NO_VALUES",
    "SIGNALS",
    "Arrays",
    "PluginSelector",
    "Selector",
    "Setting",
    "Values",
]

# Text, because listing the selectors in --help must not cost an import of NumPy.
Arrays: TypeAlias = "Mapping[str, npt.NDArray[np.float32]]"
Values: TypeAlias = "Mapping[str, ir.Value]"
NO_ARRAYS: Arrays = MappingProxyType({})
NO_VALUES: Values = MappingProxyType({})

SIGNALS: Mapping[str, str] = MappingProxyType(
    {
        "cls_attention": "[N], how much the class token attends to each token, mean over heads, "
        "in the layer that made the features",
        "mean_attention": "[N], how much all tokens attend to each token, mean over tokens and "
        "heads, in the same layer",
        "keys": "[N, E], keys of that layer, heads side by side",
        "reader_cls_attention": "[N], attention of the class token in the layer that reads the "
        "features, its heads taken as one wide head",
        "reader_keys": "[N, E], keys of the layer that reads the features",
        "patch_features": "[N, V], what the projector reads",
    }
)
"""What a tower can tell a selector beside the features; all of it is float32."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Static properties of a selector.

    Attributes:
        seed: Of ``random``'s permutation.
        grid: Rows and columns of the patches. Tokens beyond them come before the first patch
            (a class token). None: the square that gives the number of tokens, or one row.
        patch_size: Side of a patch in pixels; None where there are no pixels.
        max_tokens: The largest N where it varies from picture to picture; None where it is fixed.
    """

    seed: int = 0
    grid: tuple[int, int] | None = None
    patch_size: int | None = None
    max_tokens: int | None = None


class Selector(ABC):
    """Chooses K of N visual tokens, the same ones in NumPy and in ONNX.

    A selector that ``merges`` writes mixtures of tokens: it also has ``mix`` and
    ``write_mix``, or its own ``pass_size``.

    Attributes:
        name: What ``--selector`` calls it.
        version: Raised whenever the same features may give other indices than before.
        nested: The first k of K choices are exactly what k alone would choose.
        merges: Kept rows are mixtures of several tokens, not rows of the input.
        inside_llm: Works between decoder layers instead of behind the projector.
        any_size: Works where N and K vary: ``write`` and ``write_mix`` take values for them.
        covers: Its order comes with a cover; it has ``select_covered`` and ``write_covered``.
        needs: Names of ``SIGNALS`` that it reads beside the features.
        substitutes: For a signal that not every tower has, the one that stands for it there.
            It is handed over under the name of the first.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    nested: ClassVar[bool]
    merges: ClassVar[bool]
    inside_llm: ClassVar[bool]
    any_size: ClassVar[bool] = False
    covers: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    substitutes: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def __init__(self, setting: Setting | None = None) -> None:
        self.setting = setting or Setting()

    @property
    def parameters(self) -> dict[str, Any]:
        """What the manifest records beside the name: all that the choice depends on."""
        return {}

    def count(self, num_tokens: int, asked: int) -> int:
        """Tokens that are kept where ``asked`` were asked for: as many, or the next fewer."""
        del num_tokens
        return asked

    def pass_size(self, num_kept: int) -> tuple[int, int] | None:
        """Height and width of the picture that the tower sees instead, where it does."""
        del num_kept
        return None

    @abstractmethod
    def select(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> npt.NDArray[np.int64]:
        """The reference: features [N, D] to indices int64 [K], in the order chosen.

        Raises:
            NumericalError: if a feature or signal is NaN or Inf.
            OptionError: if ``num_kept`` is not in 1..N.
        """

    @abstractmethod
    def regret(
        self,
        features: npt.NDArray[np.generic],
        order: npt.NDArray[np.int64],
        signals: Arrays = NO_ARRAYS,
    ) -> float:
        """Largest regret of a choice in ``order``: its score's distance to the best available.

        0 for the reference's own order; about 1e-6 where float32 products were rounded
        otherwise and a near tie went the other way; large for a wrong choice.
        """

    @abstractmethod
    def write(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> ir.Value:
        """Append the same as a subgraph: features [N, D] to int64 [K], in the order chosen.

        Args:
            op: Of the graph.
            features: float32.
            num_tokens: N, or an int64 [1] that the graph computes from a shape.
            num_kept: K, of the same kind.
            signals: Those of ``needs``.

        Raises:
            OptionError: if ``num_kept`` is not in 1..N.
        """

    def select_covered(
        self,
        features: npt.NDArray[np.generic],
        num_kept: int,
        signals: Arrays = NO_ARRAYS,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """``select`` with the cover float32 [K].

        c_k is the least similarity to the nearest of the first k choices that a token which is
        not one of them has; 1 where there is none. It never falls.
        """
        raise NotImplementedError(f"{self.name} gives no cover")

    def write_covered(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values = NO_VALUES,
    ) -> tuple[ir.Value, ir.Value]:
        """Append ``select_covered`` as a subgraph: int64 [K] and float32 [K]."""
        raise NotImplementedError(f"{self.name} gives no cover")

    def mix(self, order: npt.NDArray[np.int64], signals: Arrays) -> npt.NDArray[np.float32]:
        """The reference of merging: float32 [K, V] in raster order, for the projector."""
        raise NotImplementedError(f"{self.name} does not merge")

    def write_mix(
        self,
        op: GraphWriter,
        order: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        signals: Values,
    ) -> ir.Value:
        """Append ``mix`` as a subgraph: int64 [K] to float32 [K, V]."""
        raise NotImplementedError(f"{self.name} does not merge")


@runtime_checkable
class PluginSelector(Protocol):
    """A selector whose loop our kernel can run (optional): as TensorRT's plugin, or by itself."""

    def write_start(
        self, op: GraphWriter, features: ir.Value, num_tokens: Size
    ) -> tuple[ir.Value, ir.Value]:
        """What the kernel reads: similarities float32 [N, N] and the first token int32 [1, 1]."""
        ...

    def write_with_plugin(
        self,
        op: GraphWriter,
        features: ir.Value,
        num_tokens: Size,
        num_kept: Size,
        kept_slots: ir.Value | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """As ``Selector.write_covered``, with the node ``divprune::GreedyMaxMin`` for the loop.

        ``kept_slots`` is an int32 [K], where K varies.
        """
        ...
