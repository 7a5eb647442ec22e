"""How tensors of different layouts come to one name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KeyLayout"]


@dataclass(frozen=True)
class KeyLayout:
    """How tensors of different layouts come to one name.

    Attributes:
        renames: Beginnings of names that are replaced, one after the other.
        foreign: Beginnings of names that are no part of the model.
    """

    renames: tuple[tuple[str, str], ...]
    foreign: tuple[str, ...] = ()

    def canonical_name(self, key: str) -> str:
        """The one name a tensor goes by; empty for one that is no part of the model."""
        if key.startswith(self.foreign):
            return ""
        for old, new in self.renames:
            if key.startswith(old):
                key = new + key[len(old) :]
        return key
