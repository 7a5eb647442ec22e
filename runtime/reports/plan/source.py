"""Find the model that is asked about: preset, engine directory, checkpoint, or hub cache.

Nothing is downloaded, and no weights are read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divprune.configs import list_presets, load_preset, refuse_ambiguous, suggest_preset
from divprune.runtime.directory.bounded_json import read_json_object
from divprune.runtime.directory.engine_directory import read_manifest
from divprune.runtime.directory.manifest import MANIFEST_NAME, Manifest
from divprune.runtime.directory.path_text import expand_user, is_there
from divprune.runtime.directory.quant_scheme import parse_scheme
from divprune.runtime.errors import CheckpointError, OptionError
from divprune.runtime.families import _original_internvl, _original_llava, read_dimensions
from divprune.runtime.families.dimensions import ModelDimensions, TextDimensions

__all__ = ["PlannedModel", "dimensions_of", "find_model"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class PlannedModel:
    """A model, and what is known of how it is exported.

    Attributes:
        dimensions: Its shape.
        keep: What its preset recommends or its export has; None where nobody has said.
        manifest: Of the engine directory, if that is what was given.
    """

    dimensions: ModelDimensions
    keep: float | None = None
    manifest: Manifest | None = None


def find_model(model: str) -> PlannedModel:
    """Read the shape of ``model``: a preset's name, a directory, or a hub id in the cache.

    Raises:
        OptionError: if it is none of these.
        CheckpointError: if it is not in the cache, or its config.json cannot be used.
        EngineDirectoryError: if its manifest.json cannot be read.
        UnsupportedError: for another architecture.
    """
    if model in list_presets():
        refuse_ambiguous(model, f"divprune-plan ./{model}", "call it in another folder")
        preset = load_preset(model)
        return PlannedModel(read_dimensions(model, preset.config), preset.recommended_keep)
    path = expand_user(model)
    if model and is_there(path) and path.is_dir():
        return _from_directory(path)
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        config = _read_config(_cached_config(model))
        return PlannedModel(read_dimensions(model, _translated(config, Path())))
    guess = suggest_preset(model)
    raise OptionError(
        f"{model} is not a preset, a directory or a hub id",
        expected=f"a preset ({', '.join(list_presets())}), a directory with config.json or"
        f" {MANIFEST_NAME}, or a hub id of the form org/name",
        found=model,
        fix=f"divprune-plan {guess} if that was meant" if guess else None,
    )


def dimensions_of(manifest: Manifest) -> ModelDimensions:
    """The shape of the model in an engine directory."""
    model, cache = manifest.model, manifest.kv_cache
    text = TextDimensions(
        num_layers=cache.num_layers,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_heads=model.num_heads,
        num_kv_heads=cache.num_kv_heads,
        head_dim=cache.head_dim,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
    )
    quant, tokens = manifest.quant, manifest.selector.num_image_tokens
    packed = parse_scheme(quant.scheme) if quant and quant.method in ("awq", "gptq") else None
    sizes, crops = manifest.dims.get("tokens"), manifest.dims.get("crops")
    return ModelDimensions(
        model.id,
        model.tower,
        text,
        tokens,
        packed,
        typical_image_tokens=None if sizes is None else sizes.optimum,
        crops=1 if crops is None else crops.maximum,
        typical_crops=1 if crops is None else crops.optimum,
        bounds_videos=any("video" in name and each for name, each in model.facts.items()),
    )


def _from_directory(path: Path) -> PlannedModel:
    file = path / MANIFEST_NAME
    if not file.is_file():
        config = _translated(_read_config(path / "config.json"), path)
        return PlannedModel(read_dimensions(str(path), config))
    manifest = read_manifest(path.resolve())
    return PlannedModel(dimensions_of(manifest), manifest.selector.keep or None, manifest)


def _translated(config: dict[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The config of original code in transformers' form, LLaVA's with its tower's put in."""
    if _original_internvl.is_original(config):
        return _original_internvl.translate(config)
    if not _original_llava.is_original(config):
        return config
    name = _original_llava.tower_name(config)
    folder = _original_llava.tower_folder(name, checkpoint)
    file = _cached_config(name) if folder is None else folder / "config.json"
    return _original_llava.translate(config, _read_config(file))


def _cached_config(hub_id: str) -> Path:
    """config.json of the main revision in the hub's cache on this machine."""
    repository = _hub_cache() / f"models--{hub_id.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        revision = reference.read_text(encoding="utf-8").strip()
        config = repository / "snapshots" / revision / "config.json"
        if config.is_file():
            return config
    switched_off = any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    raise CheckpointError(
        f"{hub_id} is not in the local cache",
        expected=f"its config.json below {repository}, or a preset ({', '.join(list_presets())})",
        found="nothing",
        fix=("HF_HUB_OFFLINE=0 " if switched_off else "") + f"hf download {hub_id} config.json",
    )


def _hub_cache() -> Path:
    """Where the hub's library keeps downloads; it is not installed where plans are made."""
    variables = os.environ
    home = variables.get("HF_HOME", f"{variables.get('XDG_CACHE_HOME', '~/.cache')}/huggingface")
    hub = variables.get("HUGGINGFACE_HUB_CACHE", f"{home}/hub")
    return expand_user(variables.get("HF_HUB_CACHE", hub))


def _read_config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointError(
            f"{file.parent} is neither a checkpoint nor an engine directory",
            expected=f"config.json or {MANIFEST_NAME} in it",
            found="neither",
        )
    return read_json_object(file, error=CheckpointError)
