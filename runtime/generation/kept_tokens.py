"""Which visual tokens of a picture the language model sees."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.directory.keep import kept_count
from divprune.runtime.errors import NumericalError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from divprune.runtime.backends import ImageFeatures
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["KeptTokens", "kept_rows", "resolve_keep", "selector_flags", "take_kept"]


@dataclass(frozen=True)
class KeptTokens:
    """The kept tokens of one picture.

    Attributes:
        indices: int64 [k], ascending places in the raster order of all N tokens.
        features: float [k, hidden], their features.
        num_image_tokens: N, tokens before pruning.
        order: int64 [k], the same places in the order in which they were selected; None where
            all tokens are kept without a selection.
    """

    indices: NDArray[np.int64]
    features: NDArray[np.floating]
    num_image_tokens: int
    order: NDArray[np.int64] | None = None


def resolve_keep(manifest: Manifest, keep: float | None) -> int:
    """Tokens to keep of each picture; ``None`` asks for what the directory was exported with.

    Raises:
        OptionError: if ``keep`` is no fraction, or this directory cannot serve it: more than
            it was exported with, everything where the baseline was left out, or less where
            the order of selection is not nested.
    """
    selector = manifest.selector
    if keep is None or keep == selector.keep < 1:  # which may keep fewer than it rounds to
        return selector.num_kept
    count = kept_count(keep, selector.num_image_tokens)
    if count == selector.num_kept:
        return count
    if count == selector.num_image_tokens:
        _require_baseline(manifest, keep)
    elif selector.num_kept == 0:
        raise OptionError(
            f"selector {selector.name} keeps no visual token and takes no --keep",
            expected="no --keep, or --keep 1.0 for the baseline",
            found=f"{keep:g} ({count} of {selector.num_image_tokens} tokens)",
            fix="leave --keep out",
        )
    elif count > selector.num_kept:
        raise OptionError(
            "--keep is larger than what this engine directory was exported with",
            expected=f"at most {selector.keep:g} ({selector.num_kept} tokens)",
            found=f"{keep:g} ({count} of {selector.num_image_tokens} tokens)",
            fix=_export_command(manifest, keep),
        )
    elif not selector.nested:
        raise OptionError(
            f"selector {selector.name} cannot keep fewer tokens than it was exported with",
            expected=f"{selector.keep:g} ({selector.num_kept} tokens)",
            found=f"{keep:g} ({count} tokens)",
            fix=_export_command(manifest, keep),
        )
    return count


def take_kept(features: ImageFeatures, count: int) -> KeptTokens:
    """Keep ``count`` tokens of one picture, in raster order.

    A nested order's first ``count`` choices are what ``count`` alone would have chosen; where
    the order is not nested, ``resolve_keep`` refuses such a count. Rows that a selector merged
    are taken as they come: ``indices`` says where in the picture each of them stands.

    Args:
        features: What the vision graph returned, N tokens with K of them selected.
        count: K, less than K (a prefix of the selection) or N (all of them).

    Raises:
        NumericalError: if any of the N tokens holds a NaN or Inf; the selection compared
            all of them, so it cannot be trusted either.
    """
    num_tokens, num_selected = features.num_image_tokens, len(features.selection_order)
    rows = features.rows_behind(count)
    broken = features.broken_behind(count)
    if broken is None:
        broken = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
    if broken:
        raise NumericalError(
            "the vision graph produced NaN/Inf",
            expected="finite image features",
            found=f"{broken} of {len(rows)} tokens are not finite",
            fix="export again with --dtype fp32",
        )
    order = features.selection_order[:count] if count <= num_selected else None
    if count == num_tokens:
        return KeptTokens(np.arange(count, dtype=np.int64), rows, count, order)
    indices = np.sort(features.selection_order[:count])
    kept = features.selected_features if count == num_selected else rows[indices]
    return KeptTokens(indices, kept, num_tokens, order)


def kept_rows(
    num_rows: int,
    first_slots: Sequence[int],
    num_image_tokens: int,
    kept: Sequence[NDArray[np.int64]],
) -> NDArray[np.int64]:
    """Rows of a prompt that go on behind a selection inside the LLM, ascending.

    Args:
        num_rows: Rows of the prompt.
        first_slots: Row of the first visual token of each picture.
        num_image_tokens: N, visual tokens of each picture in the prompt.
        kept: int64 [k], places among them of those that stay, for each picture.
    """
    stays = np.ones(num_rows, bool)
    for first, places in zip(first_slots, kept, strict=True):
        stays[first : first + num_image_tokens] = False
        stays[first + places] = True
    return np.flatnonzero(stays)


def _require_baseline(manifest: Manifest, keep: float) -> None:
    if manifest.baseline:
        return
    selector = manifest.selector
    raise OptionError(
        "this engine directory was exported without the baseline that keeps every token",
        expected=f"--keep of at most {selector.keep:g}",
        found=f"{keep:g} ({selector.num_image_tokens} of {selector.num_image_tokens} tokens)",
        fix=f"{_export_command(manifest, selector.keep)}, without --no-baseline",
    )


def _export_command(manifest: Manifest, keep: float) -> str:
    words = ["divprune-export", "--model", manifest.model.id, *selector_flags(manifest, keep)]
    return shlex.join(words)


def selector_flags(manifest: Manifest, keep: float) -> list[str]:
    """Flags of ``divprune-export`` for the selector that a directory has; keep 0 takes none."""
    selector = manifest.selector
    words = ["--keep", f"{keep:g}"] if keep else []
    if selector.name != "divprune":
        words += ["--selector", selector.name]
    for flag in ("seed", "layer", "tau"):
        if flag in selector.parameters:
            words += [f"--{flag}", f"{selector.parameters[flag]}"]
    return words
