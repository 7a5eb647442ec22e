"""Multimodal rotary positions: which of time, height and width turns which frequency.

A token has three positions, and every frequency of the rotary embedding follows one of them. How
many follow which is ``mrope_section`` of the config; where they lie differs:

| text model | layout | of 64 frequencies in sections [24, 20, 20] |
|---|---|---|
| qwen2_vl_text, qwen2_5_vl_text | one section behind the other | 24 time, 20 height, 20 width |
| qwen3_vl_text | interleaved | time, height, width in turn up to 60, then time |
"""

from __future__ import annotations

from typing import Any

from divprune.runtime.errors import UnsupportedError

__all__ = ["MULTIMODAL_TEXT_MODELS", "rotary_axes"]

_SECTIONED = ("qwen2_vl_text", "qwen2_5_vl_text")
_INTERLEAVED = ("qwen3_vl_text",)

MULTIMODAL_TEXT_MODELS = (*_SECTIONED, *_INTERLEAVED)


def rotary_axes(config: Any, num_frequencies: int) -> tuple[int, ...]:
    """The axis (0 time, 1 height, 2 width) of every frequency; empty with one position a token.

    Raises:
        UnsupportedError: if the sections are missing or do not add up to ``num_frequencies``.
    """
    if config.model_type not in MULTIMODAL_TEXT_MODELS:
        return ()
    sections = (config.rope_parameters or {}).get("mrope_section")
    if not isinstance(sections, list | tuple) or len(sections) != 3:
        raise UnsupportedError(
            "the sections of the multimodal rotary positions are not those of three axes",
            expected="rope_parameters.mrope_section with three numbers",
            found=sections,
        )
    spread = _interleave if config.model_type in _INTERLEAVED else _line_up
    axes = spread([int(size) for size in sections], num_frequencies)
    if sum(sections) != num_frequencies or [axes.count(axis) for axis in range(3)] != [*sections]:
        raise UnsupportedError(
            "the sections of the multimodal rotary positions do not add up",
            expected=f"{num_frequencies} frequencies, half the head dimension",
            found=f"mrope_section {list(sections)} with a sum of {sum(sections)}",
        )
    return tuple(axes)


def _line_up(sections: list[int], num_frequencies: int) -> list[int]:
    axes = [axis for axis, size in enumerate(sections) for _ in range(size)]
    return axes[:num_frequencies]


def _interleave(sections: list[int], num_frequencies: int) -> list[int]:
    """Every third frequency is height's and the one behind it width's, as long as they last."""
    axes = [0] * num_frequencies
    for axis in (1, 2):
        for frequency in range(axis, min(3 * sections[axis], num_frequencies), 3):
            axes[frequency] = axis
    return axes
