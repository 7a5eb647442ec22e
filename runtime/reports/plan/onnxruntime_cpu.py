"""Estimate the memory of ONNX Runtime on a CPU. docs/memory.md says how the numbers were found.

Weights are mapped from the file and then *prepacked*: rearranged for the kernel, each into a
buffer of its own, after which the mapping of that weight is let go.

| stored | held |
|---|---|
| fp32 | 4 bytes a number |
| fp16 | 4 bytes a number: the kernels of the CPU compute in fp32, and the cast is folded |
| int4 | half a byte a number, 12 bytes a group (two copies of its scale and a sum, fp32) |
| int8 | 1 byte a number, 8 bytes an output (scale and sum) |

Buffers up to 32 MiB come from glibc's heap, where what is freed between them stays resident.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from divprune.runtime.backends.onnxruntime.backend import ROWS_ON_CPU
from divprune.runtime.reports.plan.estimate import Estimate
from divprune.runtime.reports.plan.weights import (
    Weight,
    llm_weights,
    prefill_weights,
    vision_weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from divprune.runtime.families.dimensions import ModelDimensions
    from divprune.runtime.reports.plan.settings import PlanSettings

__all__ = ["estimate_onnxruntime"]

_MIB = 1 << 20
_PROCESS = 80 * _MIB  # Python, numpy, tokenizers, ONNX Runtime, one picture: measured
_FIRST_RUN = 10 * _MIB  # what a session allocates once when it first runs: measured
_HEAP_BUFFER = 32 * _MIB  # M_MMAP_THRESHOLD_MAX of glibc on 64 bits: larger ones are mapped
# Of the bytes in heap buffers, what is lost to holes beside them: measured.
_HOLES_CONVERTED, _HOLES_PACKED = 0.20, 0.05


def estimate_onnxruntime(model: ModelDimensions, settings: PlanSettings) -> Estimate:
    """Everything is the host's: weights, cache and activations."""
    vision = vision_weights(model, settings)
    llm = llm_weights(model, settings) + prefill_weights(model, settings)
    vision_held, llm_held = _held(vision), _held(llm)
    activations = _vision_activations(model, settings)
    scratch = _prefill_scratch(model, settings)
    cache = _filled_cache(model, settings)
    run_vision, run_llm = vision_held + activations, llm_held + cache + scratch
    # While it is loaded, a weight and its packed copy are there at once.
    load_vision, load_llm = vision_held + _largest(vision), llm_held + _largest(llm)
    if settings.residency == "sequential":
        most = max(load_vision, run_vision, load_llm, run_llm)
    else:  # the language model is loaded first
        most = max(load_llm, llm_held + load_vision, run_vision + run_llm)
    return Estimate(
        vision_weights=vision_held,
        llm_weights=llm_held,
        embedding_table=0,
        kv_cache=cache,
        activations=activations,
        prefill_scratch=scratch,
        process=_PROCESS,
        build_peak=None,
        host_peak=_PROCESS + most,
        device_peak=0,
    )


def _held(weights: Iterable[Weight]) -> int:
    return round(sum(weight.matrix.count * _held_once(weight) for weight in weights))


def _held_once(weight: Weight) -> float:
    """Bytes that one matrix takes, with its share of the heap's holes."""
    packed = _packed_bytes(weight)
    holes = 0.0
    if weight.scheme is not None:
        holes = _HOLES_PACKED
    elif weight.number_bytes == 2:
        holes = _HOLES_CONVERTED
    return packed * (1 + holes * (packed <= _HEAP_BUFFER))


def _packed_bytes(weight: Weight) -> int:
    if weight.scheme is None:
        return 4 * weight.matrix.size
    if weight.scheme.bits == 4:
        return weight.codes + 12 * weight.scales
    return weight.codes + 8 * weight.scales


def _largest(weights: Iterable[Weight]) -> int:
    return max(_packed_bytes(weight) for weight in weights)


def _vision_activations(model: ModelDimensions, settings: PlanSettings) -> int:
    """Three rows as wide as the FFN, in fp32; the attention never has a matrix of its own.

    Dynamic int8 has the integer products and the rows it quantised beside them.
    """
    tower = model.tower
    rows = model.crops * tower.num_positions * tower.intermediate_size
    return 4 * (6 if settings.vision_quant else 3) * rows


def _prefill_scratch(model: ModelDimensions, settings: PlanSettings) -> int:
    """Buffers of one block, used again by the next; fp16 graphs hold both precisions."""
    text, prompt, scheme = model.text, settings.rows(model), settings.scheme()
    rows = min(prompt, ROWS_ON_CPU)
    wide, narrow = rows * text.intermediate_size, rows * text.hidden_size
    attention = text.num_heads * rows * prompt
    both = 1.5 if settings.dtype == "fp16" else 1.0
    is_int8 = settings.prefill_quant or (scheme is not None and scheme.bits == 8)
    wide *= 7 if is_int8 else 3
    return _FIRST_RUN + round(4 * both * (wide + 2 * narrow + 2.3 * attention))


def _filled_cache(model: ModelDimensions, settings: PlanSettings) -> int:
    """Pages of the cache are handed out when they are written."""
    slots = settings.max_seq_len
    if settings.filled_slots is not None:
        slots = min(slots, settings.filled_slots)
    return slots * model.text.kv_numbers() * settings.number_bytes
