"""Values of ``config.json`` checked against their ranges before any library takes them.

Otherwise a library fails with an error of its own, or takes minutes and gigabytes before it does.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from divprune.runtime.errors import CheckpointError

__all__ = ["MAX_IMAGE_SIZE", "check_config", "values_of"]

MAX_IMAGE_SIZE = 1 << 14
"""Longest side in pixels of what a tower sees at once."""

# Far beyond any model, and still small enough to compute with.
_COUNTS = {
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "max_position_embeddings": 1 << 26,
    "num_channels": 64,
    "image_seq_length": 1 << 20,
    "depth": 1 << 10,
    "num_heads": 1 << 12,
    "embed_dim": 1 << 18,
    "max_dynamic_patch": 1 << 10,
}
_OPTIONAL = ("num_key_value_heads", "head_dim", "image_seq_length")
_MAX_PATCH_SIZE = 1 << 10
_MAX_GRIDS = 256
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_VISUAL_IDS = ("image_token_index", "image_token_id", "video_token_index", "video_token_id")
_SQUARE_TOWERS = ("clip_vision_model", "siglip_vision_model")
_ROPE_NUMBERS = (
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
)
_PARTS = ("text_config", "vision_config")


def check_config(content: Mapping[str, Any]) -> None:
    """Check what is there; what is missing has a default of its own.

    Raises:
        CheckpointError: with the key, its value and its range.
    """
    parts = {part: content[part] for part in _PARTS if content.get(part) is not None}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise _out_of_range(name, "an object", part)
    for name, part in {"": content, **parts}.items():
        _check_part(f"{name}." if name else "", part)
    text, vision = parts.get("text_config", content), parts.get("vision_config", {})
    rows = text.get("vocab_size")
    if type(rows) is int:
        _check_tokens("text_config." if "text_config" in parts else "", text, _TOKEN_IDS, rows)
    _check_tower(content, vision)
    _check_tiles(content)


@contextlib.contextmanager
def values_of(file: str) -> Iterator[None]:
    """Whatever trips over a value of a file that others wrote: nobody can think of them all.

    Raises:
        CheckpointError: that says so, for errors of Python's own.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} has a value that does not fit",
            expected=f"{file} as it is saved with the model",
            found=f"{type(error).__name__}: {error}",
        ) from error


def _check_part(prefix: str, part: Mapping[str, Any]) -> None:
    if "model_type" in part and not isinstance(part["model_type"], str):
        raise _out_of_range(f"{prefix}model_type", "a name", part["model_type"])
    for key, highest in _COUNTS.items():
        if key not in part or (part[key] is None and key in _OPTIONAL):
            continue
        if type(part[key]) is not int or not 1 <= part[key] <= highest:
            raise _out_of_range(f"{prefix}{key}", f"an integer from 1 to {highest}", part[key])
    for key in ("rms_norm_eps", "layer_norm_eps"):
        value = part.get(key)
        if value is not None and not (type(value) in (int, float) and 0 <= value < 1):
            raise _out_of_range(f"{prefix}{key}", "a number from 0, below 1", value)
    _check_positive(prefix, part, ("rope_theta",))
    for key in ("rope_parameters", "rope_scaling"):
        if part.get(key) is not None:
            _check_rope(f"{prefix}{key}", part[key])


def _check_rope(name: str, rope: object) -> None:
    """Of the text model, or of each kind of its layers."""
    if not isinstance(rope, dict):
        raise _out_of_range(name, "an object", rope)
    _check_positive(f"{name}.", rope, _ROPE_NUMBERS)
    sections = rope.get("mrope_section")
    if sections is not None and not _are_sections(sections):
        expected = f"three integers from 0 to {_COUNTS['head_dim']}"
        raise _out_of_range(f"{name}.mrope_section", expected, sections)
    for key, value in rope.items():
        if isinstance(value, dict):
            _check_rope(f"{name}.{key}", value)


def _are_sections(sections: object) -> bool:
    return (
        isinstance(sections, (list, tuple))
        and len(sections) == 3
        and all(type(size) is int and 0 <= size <= _COUNTS["head_dim"] for size in sections)
    )


def _check_positive(prefix: str, part: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in keys:
        value = part.get(key)
        if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            raise _out_of_range(f"{prefix}{key}", "a number above 0", value)


def _check_tokens(prefix: str, part: Mapping[str, Any], keys: tuple[str, ...], rows: int) -> None:
    for key in keys:
        value = part.get(key)
        for token in value if isinstance(value, list) else [value]:
            # -1 is how some trainers say that there is none.
            if token is not None and (type(token) is not int or not -1 <= token < rows):
                expected = f"a token of the table: 0 to {rows - 1}"
                raise _out_of_range(f"{prefix}{key}", expected, value)


def _check_tower(content: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    for key in _VISUAL_IDS:
        value = content.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < _COUNTS["vocab_size"]):
            raise _out_of_range(key, "a token", value)
    size = vision.get("image_size")
    square = vision.get("model_type", _SQUARE_TOWERS[0]) in _SQUARE_TOWERS
    patch = vision.get("patch_size")
    for each in _sides(patch, square):
        if type(each) is not int or not 1 <= each <= _MAX_PATCH_SIZE:
            what = f"an integer from 1 to {_MAX_PATCH_SIZE}"
            raise _out_of_range("vision_config.patch_size", what, patch)
    lowest = max(_sides(patch, square), default=1)
    for each in _sides(size, square):
        if type(each) is not int or not lowest <= each <= MAX_IMAGE_SIZE:
            what = f"an integer from {lowest} (one patch) to {MAX_IMAGE_SIZE}"
            raise _out_of_range("vision_config.image_size", what, size)
    _check_layers(content, vision)


def _sides(size: Any, square: bool) -> list[Any]:
    """The sides of a picture or patch; some towers spell them as a pair."""
    if size is None:
        return []
    return list(size) if isinstance(size, list) and len(size) == 2 and not square else [size]


def _check_tiles(content: Mapping[str, Any]) -> None:
    """What families say that cut pictures into tiles, or gather patches into tokens."""
    ratio = content.get("downsample_ratio")
    if ratio is not None and not (type(ratio) in (int, float) and 1 / 64 <= ratio <= 1):
        raise _out_of_range("downsample_ratio", "a number from 1/64 to 1", ratio)
    factor = content.get("scale_factor", 1)
    if type(factor) is not int or not 1 <= factor <= 64:
        raise _out_of_range("scale_factor", "an integer from 1 to 64", factor)
    most = re.fullmatch(r"anyres_max_(\d+)", str(content.get("vision_aspect_ratio")), re.ASCII)
    if most and not 1 <= int(most[1]) <= _MAX_GRIDS:
        expected = f"anyres_max_ and 1 to {_MAX_GRIDS}"
        raise _out_of_range("vision_aspect_ratio", expected, most[0])
    if (grids := content.get("image_grid_pinpoints")) is not None and not _are_grids(grids):
        expected = f"1 to {_MAX_GRIDS} pairs of a height and a width of up to {MAX_IMAGE_SIZE}"
        raise _out_of_range("image_grid_pinpoints", expected, grids)


def _are_grids(grids: object) -> bool:
    if not isinstance(grids, (list, tuple)) or not 1 <= len(grids) <= _MAX_GRIDS:
        return False
    pairs = [grid for grid in grids if isinstance(grid, (list, tuple)) and len(grid) == 2]
    lengths = [length for pair in pairs for length in pair]
    fitting = (type(length) is int and 1 <= length <= MAX_IMAGE_SIZE for length in lengths)
    return len(pairs) == len(grids) and all(fitting)


def _check_layers(content: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    if "vision_feature_layer" not in content:
        return
    chosen = content["vision_feature_layer"]
    layers = vision.get("num_hidden_layers", 24)
    indices = chosen if isinstance(chosen, list) and chosen else [chosen]
    for index in indices:
        if type(index) is not int or not -layers - 1 <= index <= layers:
            expected = f"a layer of the tower, or a list: {-layers - 1} to {layers}"
            raise _out_of_range("vision_feature_layer", expected, chosen)


def _out_of_range(key: str, expected: str, found: object) -> CheckpointError:
    return CheckpointError(
        f"config.json: {key} has a value that does not fit",
        expected=expected,
        found="null" if found is None else repr(found),
        fix="correct it in the checkpoint's config.json, or download the checkpoint again",
    )
