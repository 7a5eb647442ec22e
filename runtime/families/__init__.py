"""Model families at run time: one module each, found by the manifest's ``model.family``.

Packages add theirs through the entry point group ``divprune.runtime_families``: the name of the
entry is the family's, what it points to is its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from divprune.runtime.directory.bounded_json import read_json_object
from divprune.runtime.directory.config_ranges import check_config, values_of
from divprune.runtime.errors import CheckpointError, EngineDirectoryError, UnsupportedError
from divprune.runtime.families.protocol import (
    Family,
    MediaKind,
    Prepared,
    TokenMap,
    VideoFrames,
)

if TYPE_CHECKING:
    from divprune.runtime.directory.engine_directory import EngineDirectory
    from divprune.runtime.families.dimensions import ModelDimensions

__all__ = [
    "ENTRY_POINTS",
    "Family",
    "MediaKind",
    "Prepared",
    "TokenMap",
    "VideoFrames",
    "family_class",
    "family_names",
    "load_family",
    "read_dimensions",
]

ENTRY_POINTS = "divprune.runtime_families"


_SHARED = ("protocol", "dimensions")


def family_names() -> tuple[str, ...]:
    """The families of this version, one module each; what they share has other modules."""
    names = (module.name for module in iter_modules(__path__))
    return tuple(sorted(n for n in names if not n.startswith("_") and n not in _SHARED))


def family_class(name: str) -> type[Family]:
    """The class of the family ``name``: ``FAMILY`` of the module of that name, or a package's.

    Raises:
        EngineDirectoryError: if neither this version nor an installed package has it.
    """
    if name in family_names():
        found: type[Family] = import_module(f"{__name__}.{name}").FAMILY
        return found
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            loaded: type[Family] = entry.load()
            return loaded
    raise EngineDirectoryError(
        "this divprune-edge does not know the family of the model",
        expected=", ".join(family_names()) + ", or one of an installed package",
        found=name,
        fix="install the divprune-edge, or the package with this family, that the export used",
    )


def read_dimensions(name: str, content: Mapping[str, Any]) -> ModelDimensions:
    """The shape of the model that a ``config.json`` describes, by its ``model_type``.

    Args:
        name: What the user calls the model.
        content: The file's content; a preset has the part of it that matters.

    Raises:
        UnsupportedError: for another architecture, text model or tower.
        CheckpointError: for a number that is missing, none, or out of range.
    """
    kind = content.get("model_type")
    if kind not in family_names():
        raise UnsupportedError(
            f"memory of {name} cannot be planned yet",
            expected="a model_type of " + ", ".join(family_names()) + ", as transformers saves it",
            found=f"model_type {kind}",
        )
    check_config(content)
    with values_of("config.json"):
        dimensions = family_class(str(kind)).read_dimensions(name, content)
        if min(dimensions.num_image_tokens, dimensions.typical_image_tokens or 1) < 1:
            raise ValueError("a picture would have no visual token")
    return dimensions


def load_family(directory: EngineDirectory) -> Family:
    """The family of an engine directory, bound to what the export wrote for it."""
    manifest = directory.manifest
    fix = "export the model again with divprune-export"
    preprocessor = read_json_object(directory.file("preprocessor_config.json"), fix=fix)
    limit = manifest.dims.get("tokens")
    try:
        family = family_class(manifest.model.family).from_facts(
            manifest.model.facts, preprocessor, None if limit is None else limit.maximum
        )
        texts: list[Any] = list(family.placeholders.values())
        if not all(isinstance(text, str) and text for text in texts):
            raise TypeError(f"visual tokens are no text: {texts}")
        if missing := family.dims().keys() - manifest.dims.keys():
            raise LookupError(f"dims has no range of {', '.join(sorted(missing))}")
    except CheckpointError as error:
        raise EngineDirectoryError(
            f"the files of this engine directory disagree: {error.what}",
            expected=error.expected,
            found=error.found,
            fix=fix,
        ) from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise EngineDirectoryError(
            f"{manifest.model.family} cannot use what the files of this engine directory say",
            expected="model.facts and a configuration as the export wrote them",
            found=f"{type(error).__name__}: {error}",
            fix=fix,
        ) from error
    return family
