"""Model families at export: one module each, found by the ``model_type`` of config.json.

Packages add theirs through the entry point group ``divprune.export_families``: the name of the
entry is the model type, what it points to is the family's class.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any

from divprune.export.families.protocol import Family, VisionInput
from divprune.runtime.errors import UnsupportedError

__all__ = ["ENTRY_POINTS", "Family", "VisionInput", "class_of", "family_class", "model_types"]

ENTRY_POINTS = "divprune.export_families"
_SHARED = ("protocol", "tower_signals")


def model_types() -> tuple[str, ...]:
    """The model types of this version and of installed packages."""
    names = (module.name for module in iter_modules(__path__))
    ours = [name for name in names if not name.startswith("_") and name not in _SHARED]
    others = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
    return tuple(sorted({*ours, *others}))


def family_class(content: Mapping[str, Any]) -> type[Family]:
    """The class for a checkpoint, whose ``config.json`` it has checked.

    Args:
        content: The content of ``config.json``.

    Raises:
        UnsupportedError: listing the families that there are, or naming the architecture.
    """
    kind = str(content.get("model_type"))
    if kind not in model_types():
        named = content.get("architectures") or [f"model type {content.get('model_type')}"]
        found = ", ".join(map(str, named))
        raise UnsupportedError(
            f"the architecture {found} is not supported",
            expected="a model type of " + ", ".join(model_types()) + ", as transformers saves it",
            found=found,
        )
    family = class_of(kind)
    family.check(content)
    return family


def class_of(kind: str) -> type[Family]:
    """The class for one of ``model_types``."""
    family: type[Family]
    if kind in (module.name for module in iter_modules(__path__)):
        family = import_module(f"{__name__}.{kind}").FAMILY
    else:
        (entry, *_) = (e for e in entry_points(group=ENTRY_POINTS) if e.name == kind)
        family = entry.load()
    return family
