"""Which of a tower's signals a selector gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from divprune.export.families import Family
from divprune.export.selection import Selector
from divprune.export.selection.sizes import TOKENS
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Signal", "resolve_signals"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of the tower: its name in ``selection.SIGNALS`` and its shape.

    The number of tokens is called ``tokens`` where it varies.
    """

    name: str
    shape: tuple[int | str, ...]


def resolve_signals(
    selector: Selector, family: Family, example: Mapping[str, NDArray[Any]], *, varies: bool
) -> Mapping[str, Signal]:
    """For each signal that the selector needs, the one that the tower gives it.

    Args:
        selector: What chooses.
        family: Whose tower it is.
        example: The vision module's inputs for some picture; only their shapes count.
        varies: Whether another picture has another number of tokens.

    Raises:
        UnsupportedError: for one that the tower has not, and for which nothing may stand in.
    """
    names = {}
    for needed in selector.needs:
        name = needed if needed in family.signals else selector.substitutes.get(needed, needed)
        if name not in family.signals:
            raise UnsupportedError(
                f"--selector {selector.name} needs a signal that this vision tower does not give",
                expected=f"{needed}: a tower with a class token (CLIP)",
                found=family.vision_model,
                fix="--selector divprune, or another that needs none",
            )
        names[needed] = name
    shapes = _shapes(family, names, example, varies)
    pairs = zip(names.items(), shapes, strict=True)
    return {needed: Signal(name, shape) for (needed, name), shape in pairs}


def _shapes(
    family: Family,
    names: Mapping[str, str],
    example: Mapping[str, NDArray[Any]],
    varies: bool,
) -> list[tuple[int | str, ...]]:
    if not names:
        return []
    import torch

    module = family.vision_module(tuple(names.values()))
    inputs = [torch.from_numpy(example[each.name]).to("meta") for each in family.vision_inputs()]
    with torch.no_grad():
        outputs = module(*inputs)
    shapes = [tuple(signal.shape) for signal in outputs[-len(names) :]]
    return [(TOKENS, *shape[1:]) if varies else shape for shape in shapes]
