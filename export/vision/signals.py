"""Which of a tower's signals a selector gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from divprune.export.families import Family
from divprune.export.selection import Selector
from divprune.runtime.errors import UnsupportedError

__all__ = ["Signal", "resolve_signals"]


@dataclass(frozen=True, slots=True)
class Signal:
    """One signal of the tower: its name in ``selection.SIGNALS`` and its shape."""

    name: str
    shape: tuple[int, ...]


def resolve_signals(selector: Selector, family: Family) -> Mapping[str, Signal]:
    """For each signal that the selector needs, the one that the tower gives it.

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
    return {
        needed: Signal(name, shape)
        for (needed, name), shape in zip(names.items(), _shapes(family, names), strict=True)
    }


def _shapes(family: Family, names: Mapping[str, str]) -> list[tuple[int, ...]]:
    if not names:
        return []
    import torch

    module = family.image_feature_module(tuple(names.values()))
    with torch.no_grad():
        _, *signals = module(torch.zeros(1, 3, *family.image_size, device="meta"))
    return [tuple(signal.shape) for signal in signals]
