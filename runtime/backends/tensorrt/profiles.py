"""Optimisation profiles: the sizes that engines are built and tuned for.

Of the LLM:

| profile | rows | when |
|---|---|---|
| decode | 1 | each token after the first |
| prompt | 2 to the longest prefill | in front of a selection inside the LLM: all N tokens |
| pruned | 2 to what the longest prompt leaves after pruning | prefill with K tokens a picture |
| baseline | 2 to the longest prefill | prefill with all N tokens; not with ``--no-baseline`` |

Attention looks at anything from one slot of the cache to all of them (``live_slots``).

Where pictures have a varying number of visual tokens, pruned prefill and the prompts in front of a
selection are tuned for a typical one and the baseline for the largest. The graphs that see pictures
have one profile then, ``picture``, with the ranges of the manifest's ``dims``; static shapes need
none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from divprune.runtime.directory.manifest import LIVE_LENGTH, LIVE_SLOTS
from divprune.runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from divprune.runtime.directory.manifest import DimRange, GraphSpec, Manifest

__all__ = [
    "PictureProfile",
    "Profile",
    "Ranges",
    "choose_profile",
    "llm_profiles",
    "picture_profiles",
    "profile_shapes",
    "varying_dims",
]

SEQUENCE = "sequence"
_LIVE_OPTIMUM = 512  # a pruned prompt and an answer
_TEXT_TOKENS = 64  # of a prompt of a few sentences: what prefill is tuned for beside the picture


class Ranges(Protocol):
    """A profile of any graph."""

    @property
    def name(self) -> str:
        """As records and plans show it."""
        ...

    @property
    def record(self) -> str:
        """What has to be the same for an engine to do."""
        ...

    def sizes(self) -> Mapping[str, tuple[int, int, int]]:
        """Smallest, best and largest size of each named dimension."""
        ...


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

    @property
    def record(self) -> str:
        """Its name: the lengths follow from the graph."""
        return self.name

    def sizes(self) -> Mapping[str, tuple[int, int, int]]:
        """Those of the rows."""
        return {SEQUENCE: (self.minimum, self.optimum, self.maximum)}


@dataclass(frozen=True, slots=True)
class PictureProfile:
    """Ranges of the named dimensions of a graph that sees pictures; best is a typical picture."""

    dims: Mapping[str, DimRange]
    name: str = "picture"

    def __str__(self) -> str:
        ranges = (
            f"{name} {dim.minimum}-{dim.maximum} (best at {dim.optimum})"
            for name, dim in sorted(self.dims.items())
        )
        return f"{self.name} with {', '.join(ranges)}"

    @property
    def record(self) -> str:
        """Everything: the graph is the same whatever the ranges are."""
        return str(self)

    def sizes(self) -> Mapping[str, tuple[int, int, int]]:
        """Those of the dimensions."""
        return {name: (d.minimum, d.optimum, d.maximum) for name, d in self.dims.items()}


def llm_profiles(manifest: Manifest, part: str = "llm") -> tuple[Profile, ...]:
    """Profiles of an engine of the decoder, decode first, then prefill from the shortest on.

    Args:
        manifest: Manifest of the engine directory.
        part: One of ``manifest.llm_graphs``.
    """
    selector, longest = manifest.selector, manifest.max_prefill_len
    decode = Profile("decode", 1, 1, 1)
    if longest < 2:
        return (decode,)
    tokens, kept = manifest.dims.get("tokens"), manifest.dims.get("kept")
    if part == "llm_front":
        typical = tokens.optimum if tokens else selector.num_image_tokens
        return (decode, _prefill("prompt", typical, longest))
    # Without the baseline no prompt holds what pruning takes off: what is the longest one was
    # counted after it, but in front of a selection inside the LLM.
    removed = selector.num_image_tokens - selector.num_kept
    # A small picture loses next to nothing.
    shortens = manifest.baseline or (part == "llm_back" and tokens is None)
    pruned = max(2, longest - removed) if shortens else longest
    profiles = [decode, _prefill("pruned", kept.optimum if kept else selector.num_kept, pruned)]
    if manifest.baseline and pruned < longest:
        profiles.append(_prefill("baseline", selector.num_image_tokens, longest))
    return tuple(profiles)


def varying_dims(manifest: Manifest, graph: str) -> dict[str, DimRange]:
    """Ranges of the named dimensions of a graph that sees pictures.

    Raises:
        UnsupportedError: for a dimension that the manifest has no range of.
    """
    spec = manifest.graphs[graph]
    names = {dim for tensor in spec.inputs for dim in tensor.shape if isinstance(dim, str)}
    if unknown := names - manifest.dims.keys():
        raise UnsupportedError(
            f"{spec.path} varies in a way no profile describes",
            expected=f"dimensions named {', '.join(sorted(manifest.dims)) or 'nowhere'}",
            found=", ".join(sorted(unknown)),
            fix="export the model again with divprune-export",
        )
    return {name: manifest.dims[name] for name in sorted(names)}


def picture_profiles(manifest: Manifest, graph: str) -> tuple[PictureProfile, ...]:
    """The profile of a graph that sees pictures; none where its shapes are static.

    Raises:
        UnsupportedError: for a dimension that the manifest has no range of.
    """
    dims = varying_dims(manifest, graph)
    return (PictureProfile(dims),) if dims else ()


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
    graph: GraphSpec, profile: Ranges
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, best and largest shape of every input that varies.

    Raises:
        UnsupportedError: for a dimension that is not in the profile, nor the live part of the
            cache.
    """
    live, sizes = _live_range(graph), profile.sizes()
    shapes = {}
    for tensor in graph.inputs:
        names = {dim for dim in tensor.shape if isinstance(dim, str)}
        if tensor.name == LIVE_SLOTS and names == {LIVE_LENGTH}:
            shapes[tensor.name] = live
            continue
        if names - sizes.keys():
            raise UnsupportedError(
                f"{graph.path}: input {tensor.name} varies in a way no profile describes",
                expected=f"dimensions that are fixed, or named {', '.join(sorted(sizes))}",
                found=", ".join(map(str, tensor.shape)),
            )
        if names:
            low, best, high = (
                tuple(sizes[dim][end] if isinstance(dim, str) else dim for dim in tensor.shape)
                for end in range(3)
            )
            shapes[tensor.name] = (low, best, high)
    return shapes


def _live_range(graph: GraphSpec) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    slots = [int(t.shape[2]) for t in graph.inputs if t.name.startswith("past_key_")]
    capacity = max(slots, default=1)
    return (1,), (min(capacity, _LIVE_OPTIMUM),), (capacity,)


def _prefill(name: str, visual_tokens: int, longest: int) -> Profile:
    return Profile(name, 2, min(longest, visual_tokens + _TEXT_TOKENS), longest)
