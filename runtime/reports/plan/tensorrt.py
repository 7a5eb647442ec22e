"""Estimate the memory of TensorRT. Not compared with a GPU yet; the builder's part is measured.

Engines hold their weights as they are stored, but those of TensorRT-RTX hold an fp16 decoder's
blocks twice: once as the decode profile wants them, once as the prefill profiles do. One
activation memory serves both engines, so the larger need counts. The cache is allocated whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.runtime.backends.tensorrt.build.memory_limit import CONTEXT_BYTES, build_peak
from divprune.runtime.reports.plan.estimate import Estimate
from divprune.runtime.reports.plan.weights import llm_weights, stored_bytes, vision_weights

if TYPE_CHECKING:
    from divprune.runtime.families.dimensions import ModelDimensions
    from divprune.runtime.reports.plan.settings import PlanSettings

__all__ = ["estimate_tensorrt"]

_MIB = 1 << 20
_HOST_PROCESS = 350 * _MIB  # Python and TensorRT's runtime: an estimate


def estimate_tensorrt(model: ModelDimensions, settings: PlanSettings) -> Estimate:
    """Weights, cache and activations are the GPU's; the embedding table stays in its file."""
    vision = stored_bytes(vision_weights(model, settings))
    llm = _llm_engine(model, settings)
    activations = _vision_activations(model, settings)
    scratch = _prefill_scratch(model, settings)
    cache = settings.max_seq_len * model.text.kv_numbers() * settings.number_bytes
    if settings.residency == "sequential":
        most = max(vision + activations, llm + cache + scratch)
    else:
        most = vision + llm + cache + max(activations, scratch)
    return Estimate(
        vision_weights=vision,
        llm_weights=llm,
        embedding_table=0,
        kv_cache=cache,
        activations=activations,
        prefill_scratch=scratch,
        process=_HOST_PROCESS + CONTEXT_BYTES,
        build_peak=build_peak(max(vision, llm)),
        host_peak=_HOST_PROCESS,
        device_peak=CONTEXT_BYTES + most,
    )


def _llm_engine(model: ModelDimensions, settings: PlanSettings) -> int:
    weights = llm_weights(model, settings)
    once = stored_bytes(weights)
    if settings.target != "tensorrt-rtx":
        return once
    again = (w for w in weights if w.scheme is None and w.matrix.name != "lm_head")
    return once + stored_bytes(again)


def _vision_activations(model: ModelDimensions, settings: PlanSettings) -> int:
    """Attention matrices in fp32 (softmax does not bear fp16) unless a kernel avoids them."""
    tower = model.tower
    attention = model.crops * tower.num_heads * tower.num_positions**2
    rows = model.crops * tower.num_positions * (tower.intermediate_size + 4 * tower.hidden_size)
    return 2 * 4 * attention + 2 * settings.number_bytes * rows


def _prefill_scratch(model: ModelDimensions, settings: PlanSettings) -> int:
    """One block; attention is one kernel but in graphs for TensorRT before 10.15."""
    text, rows = model.text, settings.rows(model)
    wide, narrow = rows * text.intermediate_size, rows * text.hidden_size
    scratch = settings.number_bytes * (3 * wide + 4 * narrow)
    if settings.target == "jetpack6":
        scratch += 2 * 4 * text.num_heads * rows * (rows + settings.max_seq_len)
    return scratch
