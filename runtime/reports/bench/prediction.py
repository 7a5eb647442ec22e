"""Roofline times: what a stage would take if only bandwidth or arithmetic limited it.

time = max(bytes / bandwidth, FLOP / rate); the larger one is the bound. With N visual tokens,
K selected, S prompt rows, L layers, H the model's width, V the vocabulary, P = file bytes / bytes
per weight the parameters of a graph and W = 4 P what it holds in memory (ONNX Runtime computes in
float32 on a CPU and keeps float16 weights that way):

| stage | bytes | FLOP |
|---|---|---|
| preprocess | decoded picture + pixel values | none |
| vision | W(vision) | 2 P(vision) N + selection |
| selection | N H features, N N similarities, K rows of N minima (float32) | 2 N N H |
| merge | 2 S H embeddings (read and written) | none |
| prefill | W(llm) + KV of S | 2 (P(llm) - V H) S + 2 V H + 2 L H S S |
| first_sample | V logits (float32) | none |
| decode_per_token | W(llm) + KV of C | 2 P(llm) + 4 L H C |

C is the mean number of filled cache slots. ``2 L H S S`` is causal attention (4 L H S S, half of
it masked) and takes the heads together to be as wide as H; the language model's head runs for
the last row only. What is not in the manifest is left out: the tower's own attention, activations
that go through memory, and the few percent by which the graphs' structure makes their files
larger than their weights. Between two halves of the decoder, rows S and cache C are those of each
half, and the selection is left out. ``ttft`` sums its stages and is bound as the longest of them.
Quantised graphs have no prediction yet.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.directory.keep import exported_count
from divprune.runtime.reports.bench.report import Prediction, Probe, Run

if TYPE_CHECKING:
    from divprune.runtime.directory.manifest import Manifest

__all__ = ["Cost", "predict", "stage_costs"]

_WEIGHT_BYTES = {"fp16": 2, "fp32": 4}
_TTFT = ("preprocess", "vision", "merge", "prefill", "first_sample")
_F32 = 4


@dataclass(frozen=True)
class Cost:
    """Lower bound of a stage's work: bytes moved and floating-point operations."""

    num_bytes: float
    flops: float

    def roofline(self, probe: Probe) -> tuple[float, str]:
        """Time in ms and what bounds it."""
        memory = self.num_bytes / (probe.bandwidth_gb_s * 1e6)
        compute = self.flops / (probe.gflops * 1e6)
        return (memory, "memory") if memory >= compute else (compute, "compute")


def predict(
    run: Run, manifest: Manifest, image_bytes: int, probe: Probe, num_image_tokens: int
) -> dict[str, Prediction]:
    """Roofline time of every stage of ``run`` that was measured.

    Args:
        run: What was measured.
        manifest: Manifest of the engine directory.
        image_bytes: Size of the decoded picture.
        probe: What the device can do.
        num_image_tokens: N, visual tokens of the picture before pruning.
    """
    measured = dict(run.stages.measured())
    costs = stage_costs(run, manifest, image_bytes, num_image_tokens)
    times = {stage: cost.roofline(probe) for stage, cost in costs.items()}
    if times.keys() >= set(_TTFT):
        parts = [times[stage] for stage in _TTFT]
        times["ttft"] = (sum(ms for ms, _ in parts), max(parts)[1])
    return {
        stage: Prediction(ms, bound, ms / measured[stage].p50 if measured[stage].p50 else None)
        for stage, (ms, bound) in times.items()
        if stage in measured
    }


def stage_costs(
    run: Run, manifest: Manifest, image_bytes: int, num_image_tokens: int
) -> dict[str, Cost]:
    """Bytes and operations of each stage, by the table of this module."""
    costs = _light_costs(run, manifest, image_bytes, num_image_tokens)
    if any((manifest.quant, manifest.vision_quant, manifest.prefill_quant)):
        return costs
    tower = _parameters(manifest, "vision")
    selection = costs.get("selection", Cost(0, 0))
    costs["vision"] = Cost(tower * _F32, 2 * tower * num_image_tokens + selection.flops)
    parts = _decoder_parts(run, manifest, num_image_tokens)
    costs["prefill"] = _sum(_prefill_cost(part, manifest) for part in parts)
    costs["decode_per_token"] = _sum(_decode_cost(part, run, manifest) for part in parts)
    return costs


@dataclass(frozen=True)
class _Part:
    """A decoder graph: its parameters, those of the head in it, its layers and prompt rows."""

    parameters: float
    head: int
    layers: int
    rows: int


def _decoder_parts(run: Run, manifest: Manifest, num_image_tokens: int) -> list[_Part]:
    """The graphs of the decoder; behind a selection inside the LLM there are fewer rows."""
    selector, layers = manifest.selector, manifest.kv_cache.num_layers
    head = manifest.model.vocab_size * manifest.model.hidden_size
    sizes = [_parameters(manifest, graph) for graph in manifest.llm_graphs]
    if not selector.inside_llm:
        return [_Part(sizes[0], head, layers, run.prompt_tokens)]
    before = selector.parameters["layer"]
    rows = run.prompt_tokens - num_image_tokens + run.num_kept
    return [
        _Part(sizes[0], 0, before, run.prompt_tokens),
        _Part(sizes[1], head, layers - before, rows),
    ]


def _prefill_cost(part: _Part, manifest: Manifest) -> Cost:
    causal = 2 * part.layers * manifest.model.hidden_size * part.rows**2
    return Cost(
        part.parameters * _F32 + _kv_bytes(part, manifest) * part.rows,
        2 * (part.parameters - part.head) * part.rows + 2 * part.head + causal,
    )


def _decode_cost(part: _Part, run: Run, manifest: Manifest) -> Cost:
    filled = part.rows + run.new_tokens / 2
    return Cost(
        part.parameters * _F32 + _kv_bytes(part, manifest) * filled,
        2 * part.parameters + 4 * part.layers * manifest.model.hidden_size * filled,
    )


def _kv_bytes(part: _Part, manifest: Manifest) -> float:
    """Bytes that a row takes in this part's cache."""
    spec = manifest.kv_cache
    return spec.bytes_per_token * part.layers / spec.num_layers


def _sum(costs: Iterable[Cost]) -> Cost:
    every = list(costs)
    return Cost(sum(cost.num_bytes for cost in every), sum(cost.flops for cost in every))


def _light_costs(run: Run, manifest: Manifest, image_bytes: int, tokens: int) -> dict[str, Cost]:
    """The stages that no weights take part in."""
    model, selector = manifest.model, manifest.selector
    pixels = manifest.graphs["vision"].inputs[0]
    sizes = (manifest.dims[dim].optimum if isinstance(dim, str) else dim for dim in pixels.shape)
    pixel_bytes = _F32 * math.prod(sizes)
    embeds = run.prompt_tokens * model.hidden_size * _WEIGHT_BYTES[manifest.dtype]
    features = tokens * model.hidden_size
    costs = {
        "preprocess": Cost(image_bytes + pixel_bytes, 0),
        "merge": Cost(2 * embeds, 0),
        "first_sample": Cost(_F32 * model.vocab_size, 0),
    }
    if not selector.inside_llm:
        selected = exported_count(manifest, tokens)
        costs["selection"] = Cost(
            _F32 * (features + tokens**2 + selected * tokens), 2 * tokens * features
        )
    return costs


def _parameters(manifest: Manifest, graph: str) -> float:
    """Weights of a graph, from the size of its files."""
    path = manifest.graphs[graph].path
    size = sum(record.size for name, record in manifest.files.items() if name.startswith(path))
    return size / _WEIGHT_BYTES[manifest.dtype]
