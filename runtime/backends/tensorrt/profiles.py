"""Optimisation profiles: the lengths that the engines of the LLM are tuned for.

| profile | rows | when |
|---|---|---|
| decode | 1 | each token after the first |
| prompt | 2 to the longest prefill | in front of a selection inside the LLM: all N tokens |
| pruned | 2 to what the longest prompt leaves after pruning | prefill with K tokens a picture |
| baseline | 2 to the longest prefill | prefill with all N tokens; not with ``--no-baseline`` |

Attention looks at anything from one slot of the cache to all of them (``live_slots``).

The vision graph has static shapes and needs none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.directory.manifest import LIVE_LENGTH, LIVE_SLOTS
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from divprune.runtime.directory.manifest import GraphSpec, Manifest

__all__ = ["Profile", "choose_profile", "llm_profiles", "profile_shapes"]

SEQUENCE = "sequence"
_LIVE_OPTIMUM = 512  # a pruned prompt and an answer
_TEXT_TOKENS = 64  # of a prompt of a few sentences: what prefill is tuned for beside the picture


@dataclass(frozen=True, slots=True)
class Profile:
    """Rows that an engine takes at once: from ``minimum`` to ``maximum``, best at ``optimum``."""

    name: str
    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise ValueError(f"not a profile: {self}")

    def __str__(self) -> str:
        if self.minimum == self.maximum:
            return f"{self.name} {self.maximum}"
        return f"{self.name} {self.minimum}-{self.maximum} (best at {self.optimum})"


def llm_profiles(manifest: Manifest, part: str = "llm") -> tuple[Profile, ...]:
    """Profiles of an engine of the decoder, decode first, then prefill from the shortest on.

    Args:
        manifest: Of the engine directory.
        part: One of ``manifest.llm_graphs``.
    """
    selector, longest = manifest.selector, manifest.max_prefill_len
    decode = Profile("decode", 1, 1, 1)
    if longest < 2:
        return (decode,)
    if part == "llm_front":
        return (decode, _prefill("prompt", selector.num_image_tokens, longest))
    # Without the baseline no prompt holds what pruning takes off: what is the longest one was
    # counted after it, but in front of a selection inside the LLM.
    removed = selector.num_image_tokens - selector.num_kept
    shortens = manifest.baseline or part == "llm_back"
    pruned = max(2, longest - removed) if shortens else longest
    profiles = [decode, _prefill("pruned", selector.num_kept, pruned)]
    if manifest.baseline and pruned < longest:
        profiles.append(_prefill("baseline", selector.num_image_tokens, longest))
    return tuple(profiles)


def choose_profile(profiles: tuple[Profile, ...], rows: int) -> int:
    """Index of the profile that takes ``rows`` and is tuned for the nearest number, by ratio.

    Raises:
        ValueError: if none does.
    """
    fitting = [i for i, each in enumerate(profiles) if each.minimum <= rows <= each.maximum]
    if not fitting:
        raise ValueError(f"no profile takes {rows} rows: {', '.join(map(str, profiles))}")
    return min(fitting, key=lambda index: abs(math.log(rows / profiles[index].optimum)))


def profile_shapes(
    graph: GraphSpec, profile: Profile
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, best and largest shape of every input that varies.

    Raises:
        UnsupportedError: for a dimension that is not the sequence or the live part of the cache.
    """
    live = _live_range(graph)
    shapes = {}
    for tensor in graph.inputs:
        names = {dim for dim in tensor.shape if isinstance(dim, str)}
        if tensor.name == LIVE_SLOTS and names == {LIVE_LENGTH}:
            shapes[tensor.name] = live
            continue
        if names - {SEQUENCE}:
            raise UnsupportedError(
                f"{graph.path}: input {tensor.name} varies in a way no profile describes",
                expected=f"dimensions that are fixed, or named {SEQUENCE}",
                found=", ".join(map(str, tensor.shape)),
            )
        if names:
            low, best, high = (
                tuple(rows if dim == SEQUENCE else int(dim) for dim in tensor.shape)
                for rows in (profile.minimum, profile.optimum, profile.maximum)
            )
            shapes[tensor.name] = (low, best, high)
    return shapes


def _live_range(graph: GraphSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    slots = [int(t.shape[2]) for t in graph.inputs if t.name.startswith("past_key_")]
    capacity = max(slots, default=1)
    return (1,), (min(capacity, _LIVE_OPTIMUM),), (capacity,)


def _prefill(name: str, visual_tokens: int, longest: int) -> Profile:
    return Profile(name, 2, min(longest, visual_tokens + _TEXT_TOKENS), longest)
