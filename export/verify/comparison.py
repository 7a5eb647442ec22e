"""Tolerances of the comparison with transformers, and the comparison."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from divprune.export.planning.options import ExportOptions
from divprune.runtime.errors import NumericalError

__all__ = ["Tolerance", "check_cover", "check_distinct", "check_regret", "compare"]

_SELECTION_TOLERANCE = 1e-5
"""Two float32 products of the same numbers differ by less."""

_HALF_SELECTION = 1e-3
"""On a CPU ONNX Runtime leaves out the rounding between two casts of its own: the selection may see
float32 features where the output holds their float16."""

_INT8_VISION = 0.3
_INT8_BLOCK = 0.1

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest accepted error: |difference| / |reference| (2-norms) of the worst row.

    transformers runs in float32 in every case, with weights that were quantised and back where
    the decoder's are. A float16 tower adds up its rounding over all of its layers, a block only
    over one. 8-bit activations are off by about 1 % in each of their layers; that bound tells a
    wrong layout from rounding, and no more.
    """

    vision: float
    block: float
    selection: float = _SELECTION_TOLERANCE

    @classmethod
    def of(cls, options: ExportOptions, graph: str = "llm") -> Tolerance:
        """The tolerance of an export's number formats, in the decoder ``graph`` of that name."""
        half = options.dtype == "fp16"
        scheme = options.quant_scheme()
        int8 = graph == "llm_prefill" or (scheme is not None and scheme.bits == 8)
        return cls(
            vision=_INT8_VISION if options.vision_quant else 5e-2 if half else 1e-3,
            block=_INT8_BLOCK if int8 else 1e-2 if half else 1e-4,
            selection=_HALF_SELECTION if half else _SELECTION_TOLERANCE,
        )


def compare(part: str, found: np.ndarray, reference: np.ndarray, tolerance: float) -> float:
    """The worst row's relative error; an error above the tolerance, or a NaN, is refused."""
    difference = np.linalg.norm(found - reference, axis=-1)
    error = float(np.max(difference / np.maximum(np.linalg.norm(reference, axis=-1), 1e-12)))
    logger.debug("%s: relative error %.2e (tolerance %.0e)", part, error, tolerance)
    if not error <= tolerance:
        raise NumericalError(
            f"the exported {part} differs from transformers",
            expected=f"relative error up to {tolerance:g}",
            found=f"{error:.3g}",
            fix="report this with the model's config.json; --dtype fp32 tells whether fp16 is "
            "the cause",
        )
    return error


def check_distinct(order: np.ndarray, num_tokens: int) -> None:
    """Refuse an order [K] that is no choice of K of N tokens."""
    num_kept = len(order)
    if len(np.unique(order)) != num_kept or order.min() < 0 or order.max() >= num_tokens:
        raise NumericalError(
            "the selection in the graph is not a choice of distinct tokens",
            expected=f"{num_kept} different indices below {num_tokens}",
            found=order.tolist(),
        )


def check_cover(
    selector: str,
    found: np.ndarray,
    reference: np.ndarray,
    tolerance: float = _SELECTION_TOLERANCE,
) -> None:
    """Refuse a cover [K] that is not the reference's for the same order."""
    error = float(np.abs(found - reference).max())
    if not error <= tolerance:
        raise NumericalError(
            f"the cover in the graph differs from the reference of {selector}",
            expected=f"similarities that differ by {tolerance:g} at most",
            found=f"{error:.3g}",
        )


def check_regret(selector: str, regret: float, tolerance: float = _SELECTION_TOLERANCE) -> None:
    """Refuse a selection with a choice that is worse than the best one open to it."""
    if not regret <= tolerance:
        raise NumericalError(
            f"the selection in the graph differs from the reference of {selector}",
            expected=f"no choice worse than the best by more than {tolerance:g}",
            found=f"{regret:.3g}",
        )
