"""Which visual tokens of a picture the language model sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from divprune.runtime.directory.export_command import export_command
from divprune.runtime.directory.keep import AutoKeep, exported_count, kept_count, parse_keep
from divprune.runtime.errors import NumericalError, OptionError, UnsupportedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from divprune.runtime.backends.image_features import ImageFeatures
    from divprune.runtime.directory.keep import Keep
    from divprune.runtime.directory.manifest import Manifest

__all__ = [
    "KeepRule",
    "KeptTokens",
    "resolve_keep",
    "take_kept",
]


@dataclass(frozen=True)
class KeptTokens:
    """The kept tokens of one picture or video.

    Attributes:
        indices: int64 [k], ascending places in the raster order of all N tokens.
        features: float [k, hidden], their features.
        num_image_tokens: N, tokens before pruning.
        order: int64 [k], the same places in the order in which they were selected; None where
            all tokens are kept without a selection.
        planes: Further rows [k, hidden] of the same tokens, for later decoder layers.
        cover: The least similarity of a dropped token to its most similar kept one, where the
            graph tells it.
    """

    indices: NDArray[np.int64]
    features: NDArray[np.floating]
    num_image_tokens: int
    order: NDArray[np.int64] | None = None
    planes: tuple[NDArray[np.floating], ...] = ()
    cover: float | None = None


@dataclass(frozen=True)
class KeepRule:
    """How many tokens of a picture are kept. Made by `KeepRule.of`, which checks it.

    Attributes:
        manifest: Manifest of the engine directory.
        keep: A fraction, a similarity to reach, or None: as exported.
    """

    manifest: Manifest
    keep: Keep | None

    @classmethod
    def of(cls, manifest: Manifest, keep: Keep | str | None) -> KeepRule:
        """A rule that this directory can follow for its largest picture.

        What the directory was exported with is always one, also where it keeps nothing.

        Raises:
            OptionError: if ``keep`` is no fraction, or this directory cannot serve it: more
                than it was exported with, everything where the baseline was left out, or less
                where the order of selection is not nested.
            UnsupportedError: for ``auto:`` where the graph tells no cover.
        """
        is_exported = keep is None or keep == manifest.selector.keep < 1
        rule = cls(manifest, None if keep is None or is_exported else parse_keep(keep))
        if isinstance(rule.keep, AutoKeep):
            _require_cover(manifest, rule.keep)
        rule.count(manifest.selector.num_image_tokens)
        return rule

    def count(self, num_image_tokens: int, cover: NDArray[np.float32] | None = None) -> int:
        """Tokens to keep of a picture with N of them.

        Args:
            num_image_tokens: N.
            cover: float32 [K], ``selection_cover`` of the picture; needed for ``auto:`` only.
        """
        if not isinstance(self.keep, AutoKeep):
            return _count(self.manifest, self.keep, num_image_tokens)
        most = exported_count(self.manifest, num_image_tokens)
        if cover is None:
            return most
        reached = np.flatnonzero(cover >= np.float32(self.keep.cover))
        return int(reached[0]) + 1 if len(reached) else len(cover)


def resolve_keep(manifest: Manifest, keep: Keep | str | None) -> int:
    """Tokens to keep of the largest picture; the errors are those of `KeepRule.of`."""
    return KeepRule.of(manifest, keep).count(manifest.selector.num_image_tokens)


def take_kept(features: ImageFeatures, count: int) -> KeptTokens:
    """Keep ``count`` tokens of one picture, in raster order.

    A nested order's first ``count`` choices are what ``count`` alone would have chosen; where
    the order is not nested, ``KeepRule`` refuses such a count. Rows that a selector merged
    are taken as they come: ``indices`` says where in the picture each of them stands.

    Args:
        features: What the vision graph returned, N tokens with K of them selected.
        count: K, less than K (a prefix of the selection) or N (all of them).

    Raises:
        NumericalError: if any of the N tokens holds a NaN or Inf; the selection compared
            all of them, so it cannot be trusted either.
    """
    num_tokens, num_selected = features.num_image_tokens, len(features.selection_order)
    _check_finite(features, count)
    order = features.selection_order[:count] if count <= num_selected else None
    cover = None
    if features.cover is not None and order is not None:
        cover = float(features.cover[count - 1])
    everything = np.arange(count, dtype=np.int64)
    indices = everything if count == num_tokens else np.sort(features.selection_order[:count])
    kept, planes = features.kept(indices)
    return KeptTokens(indices, kept, num_tokens, order, planes, cover)


def _check_finite(features: ImageFeatures, count: int) -> None:
    broken, compared = features.broken_behind(count)
    if broken:
        raise NumericalError(
            "the vision graph produced NaN/Inf",
            expected="finite image features",
            found=f"{broken} of {compared} tokens are not finite",
            fix="export again with --dtype fp32",
        )


def _count(manifest: Manifest, keep: float | None, num_tokens: int) -> int:
    selector, most = manifest.selector, exported_count(manifest, num_tokens)
    if keep is None or keep == selector.keep < 1:
        return most
    count = kept_count(keep, num_tokens)
    if count == most:
        return count
    if count == num_tokens:
        _require_baseline(manifest, keep, num_tokens)
    elif most == 0:
        raise OptionError(
            f"selector {selector.name} keeps no visual token and takes no --keep",
            expected="no --keep, or --keep 1.0 for the baseline",
            found=f"{keep:g} ({count} of {num_tokens} tokens)",
            fix="leave --keep out",
        )
    elif count > most:
        raise OptionError(
            "--keep is larger than what this engine directory was exported with",
            expected=f"at most {selector.keep:g} ({most} tokens)",
            found=f"{keep:g} ({count} of {num_tokens} tokens)",
            fix=export_command(manifest, keep=keep),
        )
    elif not selector.nested:
        raise OptionError(
            f"selector {selector.name} cannot keep fewer tokens than it was exported with",
            expected=f"{selector.keep:g} ({most} tokens)",
            found=f"{keep:g} ({count} tokens)",
            fix=export_command(manifest, keep=keep),
        )
    return count


def _require_cover(manifest: Manifest, keep: AutoKeep) -> None:
    outputs = {tensor.name for tensor in manifest.graphs["vision"].outputs}
    if "selection_cover" not in outputs:
        raise UnsupportedError(
            f"selector {manifest.selector.name} does not tell how well the kept tokens stand for "
            "the dropped ones",
            expected="a fraction for --keep, or a directory whose selector is divprune",
            found=f"--keep {keep}",
        )


def _require_baseline(manifest: Manifest, keep: float, num_tokens: int) -> None:
    if manifest.baseline:
        return
    selector = manifest.selector
    raise OptionError(
        "this engine directory was exported without the baseline that keeps every token",
        expected=f"--keep of at most {selector.keep:g}",
        found=f"{keep:g} ({num_tokens} of {num_tokens} tokens)",
        fix=export_command(manifest, baseline=True),
    )
