"""Parts that the kernels for many tokens cannot do without: each lapse has to be noticed."""

from __future__ import annotations

from divprune.plugins.feature_selection import error_bound

__all__ = ["EXCHANGE", "LAPSES", "REFINEMENT", "WIDTH"]

WIDTH = 64
"""Of the features for which errors are added to the matrix."""
EXCHANGE = {
    "barrier": (
        "__syncthreads();\n    if (!Link::kEveryWarpLooks && warp",
        "if (!LACKS) __syncthreads();\n    if (!Link::kEveryWarpLooks && warp",
    ),
    "turns": ("turn = number % 2", "turn = LACKS ? 0 : number % 2"),
    "number of the call": (
        "(message >> 16 & 0xffff) != tag",
        "(LACKS ? (message >> 16 & 0xffff) == 0 : (message >> 16 & 0xffff) != tag)",
    ),
    "waiting for all": (
        "awaited = lane < gridDim.x",
        "awaited = LACKS ? lane == blockIdx.x : lane < gridDim.x",
    ),
    "empty inboxes": (
        "inbox[0][0][place] = 0;\n    wait_for_cluster();",
        "inbox[0][0][place] = 0;\n    if (!LACKS) wait_for_cluster();",
    ),
    "selected": ("if (token == last) closed", "if (!LACKS && token == last) closed"),
    "ties": (
        "best.value() == least ? best.label()",
        "LACKS || best.value() == least ? best.label()",
    ),
}
"""Of the greedy choice by several blocks."""
_SCALED = "sums[down][across][part] * inverse[row] * inverse[column]"
_SIGN = "((row * 40503u ^ column * 30011u) >> 3 & 1 ? 1.0f : -1.0f)"
_ERRORS = f"{error_bound(WIDTH)}f * {_SIGN}"
REFINEMENT = {
    "refining": ("best.second > ordered(high)", "LACKS || best.second > ordered(high)"),
    "doubt": ("exact &= ~(1u << slot);", "exact &= LACKS ? kNothing : ~(1u << slot);"),
    "errors beyond the bound": (_SCALED, f"{_SCALED} + (LACKS ? 4.0f : 0) * {_ERRORS}"),
}
"""Of the selection from features."""
_WITHIN = (_SCALED, f"{_SCALED} + (LACKS ? 0.9f : 0) * {_ERRORS}")
LAPSES = EXCHANGE | REFINEMENT | {"errors within the bound": _WITHIN}
"""All of them, and errors that must not be noticed."""
