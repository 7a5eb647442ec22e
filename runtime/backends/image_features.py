"""What a vision graph says about one picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ImageFeatures", "LateFeatures", "SmallPictureFeatures"]


@dataclass(frozen=True)
class ImageFeatures:
    """What the vision graph says about one picture.

    A selection inside the LLM comes later: ``selection_order`` and ``selected_features`` are
    empty then.

    Attributes:
        image_features: float [N, hidden], all projected tokens in raster order.
        selection_order: int64 [K], kept indices in the order they were chosen.
        selected_features: float [K, hidden], the kept rows (or mixtures) in raster order.
        num_broken: Tokens with a NaN or Inf among their features, where the backend has
            counted them itself.
        cover: float32 [K], after each choice the least similarity of a token that was not
            chosen to its most similar chosen one; None where the selector tells none.
        planes: Further rows [N, hidden] of the tokens, for later decoder layers.

    Features may be on a device: then they are no arrays, but are indexed by row and turned
    into arrays like them, and a prompt is spliced where they are.
    """

    image_features: NDArray[np.floating]
    selection_order: NDArray[np.int64]
    selected_features: NDArray[np.floating]
    num_broken: int | None = None
    cover: NDArray[np.float32] | None = None
    planes: tuple[NDArray[np.floating], ...] = ()

    @property
    def num_image_tokens(self) -> int:
        """N, tokens before pruning."""
        return len(self.image_features)

    @property
    def compared(self) -> NDArray[np.floating]:
        """The rows that a selection has before it: all of them."""
        return self.image_features

    @property
    def num_bytes(self) -> int:
        """Of everything that is in memory by now."""
        rows = (self.image_features, self.selected_features, *self.planes)
        return sum(map(_num_bytes, rows))

    def kept(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.floating], tuple[NDArray[np.floating], ...]]:
        """The rows [k, hidden] of a choice of k tokens, and those of the planes.

        ``indices`` are the first k of the selection, or all N tokens, in raster order.
        """
        if len(indices) == self.num_image_tokens:
            return self.image_features, self.planes
        whole = len(indices) == len(self.selection_order)
        rows = self.selected_features if whole else self.image_features[indices]
        return rows, tuple(plane[indices] for plane in self.planes)

    def broken_behind(self, count: int) -> tuple[int, int]:
        """Of the rows that a choice of ``count`` tokens rests on: those with a NaN or Inf, and all.

        They are all N, which the selection compared.
        """
        del count
        broken = self.num_broken
        if broken is None:
            broken = _count_broken(self.image_features)
        return broken, self.num_image_tokens


class LateFeatures(ImageFeatures):
    """The same where all N tokens come only when somebody asks for them.

    Args:
        order: ``selection_order``.
        selected: ``selected_features``.
        num_image_tokens: N.
        fetch: Gives everything.
        num_broken: As in ``ImageFeatures``.
        cover: The same.
        selected_planes: Rows of the planes that go with ``selected``.
        bytes_away: Of the rows that wait on a device.
    """

    _num_image_tokens: int
    _fetch: Callable[[], ImageFeatures]
    _selected_planes: tuple[NDArray[np.floating], ...]
    _bytes_away: int

    def __init__(
        self,
        order: NDArray[np.int64],
        selected: NDArray[np.floating],
        num_image_tokens: int,
        fetch: Callable[[], ImageFeatures],
        num_broken: int | None = None,
        cover: NDArray[np.float32] | None = None,
        selected_planes: tuple[NDArray[np.floating], ...] = (),
        bytes_away: int = 0,
    ) -> None:
        # Past the fields of a frozen dataclass, two of which are properties here.
        fields = {
            "selection_order": order,
            "selected_features": selected,
            "num_broken": num_broken,
            "cover": cover,
            "_num_image_tokens": num_image_tokens,
            "_fetch": fetch,
            "_selected_planes": selected_planes,
            "_bytes_away": bytes_away,
        }
        self.__dict__.update(fields)

    @cached_property
    def _everything(self) -> ImageFeatures:
        return self._fetch()

    @property
    def image_features(self) -> NDArray[np.floating]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All tokens, float [N, hidden]."""
        return self._everything.image_features

    @property
    def planes(self) -> tuple[NDArray[np.floating], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Further rows of all tokens."""
        return self._everything.planes

    @property
    def num_image_tokens(self) -> int:
        """N, tokens before pruning."""
        return self._num_image_tokens

    @property
    def num_bytes(self) -> int:
        """Of everything that is in memory by now, here or on a device."""
        rows = [self.selected_features, *self._selected_planes]
        fetched = self._everything.num_bytes if "_everything" in self.__dict__ else 0
        return sum(map(_num_bytes, rows)) + fetched + self._bytes_away

    def kept(
        self, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.floating], tuple[NDArray[np.floating], ...]]:
        """The same; all tokens are fetched unless all that were selected are kept."""
        if len(indices) == len(self.selection_order):
            return self.selected_features, self._selected_planes
        return self._everything.kept(indices)


class SmallPictureFeatures(LateFeatures):
    """The same where the tower saw a smaller picture (``downsample``).

    The full picture goes through the tower only when somebody asks for ``image_features``.
    """

    @property
    def compared(self) -> NDArray[np.floating]:
        """The small picture's tokens."""
        return self.selected_features

    def broken_behind(self, count: int) -> tuple[int, int]:
        """The small picture's tokens, unless every token of the full one is kept."""
        if count != len(self.selection_order):
            return self._everything.broken_behind(count)
        broken, rows = self.num_broken, self.selected_features
        return _count_broken(rows) if broken is None else broken, len(rows)


def _count_broken(rows: NDArray[np.floating]) -> int:
    """How many rows hold a NaN or Inf."""
    return int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))


def _num_bytes(rows: NDArray[np.floating]) -> int:
    """Of an array, here or on a device."""
    return int(math.prod(rows.shape)) * rows.dtype.itemsize
