"""Known models and devices, one YAML file each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from divprune.runtime.errors import DivPruneError, OptionError
from divprune.runtime.families import family_names, read_dimensions

__all__ = [
    "Preset",
    "list_presets",
    "load_preset",
    "preset_from_dict",
    "refuse_ambiguous",
    "suggest_preset",
]

_MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Preset:
    """A known model: its repository and shape, before any checkpoint is downloaded.

    Attributes:
        name: What ``--model`` takes.
        hub_id: Repository on the hub.
        family: The export family that reads it.
        prompt: One turn as the model's chat template writes it, with ``{question}``.
        image_size: Height and width of the tower's input in pixels.
        patch_size: Edge of a patch in pixels.
        num_image_tokens: Visual tokens of a picture (N); of the largest one where N varies.
        typical_image_tokens: Those of a picture of 640 x 480 pixels; ``None`` where N is fixed.
        config: Its config.json, without what is transformers' default.
        recommended_keep: Fraction to keep; ``None`` where nobody has measured it.
        license: Licence tag of the repository; ``None`` if not known for certain.
    """

    name: str
    hub_id: str
    family: str
    prompt: str
    image_size: int
    patch_size: int
    num_image_tokens: int
    config: dict[str, Any]
    recommended_keep: float | None = None
    license: str | None = None
    typical_image_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in ("hub_id", "family", "prompt"):
            value = getattr(self, field)
            _check(isinstance(value, str), self.name, field, "text", value)
        _check(self.hub_id.count("/") == 1, self.name, "hub_id", "org/name", self.hub_id)
        known = family_names()
        _check(self.family in known, self.name, "family", ", ".join(known), self.family)
        _check("{question}" in self.prompt, self.name, "prompt", "{question} in it", self.prompt)
        for field in ("image_size", "patch_size", "num_image_tokens"):
            value = getattr(self, field)
            is_count = type(value) is int and value > 0
            _check(is_count, self.name, field, "an integer above 0", value)
        keep: Any = self.recommended_keep
        is_fraction = keep is None or (isinstance(keep, (int, float)) and 0 < keep <= 1)
        _check(is_fraction, self.name, "recommended_keep", "0 < keep <= 1", keep)
        self._check_config()

    def _check_config(self) -> None:
        _check(isinstance(self.config, dict), self.name, "config", "a mapping", self.config)
        try:
            model = read_dimensions(self.name, self.config)
        except DivPruneError as error:
            raise OptionError(f"preset {self.name}: config is wrong", found=error) from error
        for field in ("num_image_tokens", "typical_image_tokens"):
            stated, tokens = getattr(self, field), getattr(model, field)
            expected = f"one of {field} {stated}"
            _check(tokens == stated, self.name, "config", expected, f"{tokens}")


def list_presets() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    return tuple(sorted(file.stem for file in _MODELS.glob("*.yaml")))


def load_preset(name: str) -> Preset:
    """Read and validate one preset.

    Raises:
        OptionError: for an unknown name (it lists the known ones), and for a file with a
            wrong, missing or unknown field.
    """
    if name not in list_presets():
        guess = suggest_preset(name)
        raise OptionError(
            f"there is no preset {name}",
            expected="one of " + ", ".join(list_presets()),
            found=name,
            fix=f"{guess} if that was meant" if guess else None,
        )
    content = yaml.safe_load((_MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    return preset_from_dict(name, content)


def refuse_ambiguous(name: str, directory: str, preset: str) -> None:
    """Refuse a preset's name where a model of that name lies here as well.

    Args:
        name: Of the preset.
        directory: How the directory is asked for.
        preset: How the other one is.

    Raises:
        OptionError: if there is such a directory.
    """
    kinds = ("config.json", "adapter_config.json", "manifest.json")
    found = next((kind for kind in kinds if Path(name, kind).is_file()), None)
    if found is not None:
        raise OptionError(
            f"{name} is a preset, and a directory here",
            expected="a name that means one of them",
            found=f"{name}/{found}",
            fix=f"{directory} for the directory, or {preset} for the preset",
        )


def preset_from_dict(name: str, content: object) -> Preset:
    """A preset from the content of its file.

    Raises:
        OptionError: naming the field that is wrong, missing or unknown.
    """
    if not isinstance(content, dict):
        raise OptionError(f"preset {name} is not a mapping", found=type(content).__name__)
    known = {field.name for field in fields(Preset)} - {"name"}
    unknown = sorted(map(str, content.keys() - known))
    _check(not unknown, name, "fields", ", ".join(sorted(known)), ", ".join(unknown))
    arguments: dict[str, Any] = dict(content)
    try:
        return Preset(name=name, **arguments)
    except TypeError as error:  # a missing field: Python's own message names it
        raise OptionError(f"preset {name} cannot be read", found=error) from error


def suggest_preset(name: str) -> str | None:
    """The preset whose name is most like ``name``, if one is alike at all."""
    wanted = Path(name).name.lower()
    matches = difflib.get_close_matches(wanted, list_presets(), n=1, cutoff=0.6)
    return matches[0] if matches else None


def _check(is_right: bool, preset: str, field: str, expected: str, found: object) -> None:
    if not is_right:
        raise OptionError(f"preset {preset}: {field} is wrong", expected=expected, found=found)
