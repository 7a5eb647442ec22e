"""Stored sizes of a model's weights, part by part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from divprune.runtime.directory.quant_scheme import INT8

if TYPE_CHECKING:
    from divprune.runtime.directory.quant_scheme import QuantScheme
    from divprune.runtime.families.dimensions import Matrix, ModelDimensions
    from divprune.runtime.reports.plan.settings import PlanSettings

__all__ = [
    "Weight",
    "llm_weights",
    "prefill_weights",
    "stored_bytes",
    "table_bytes",
    "vision_weights",
]


@dataclass(frozen=True, slots=True)
class Weight:
    """A matrix and how its numbers are written: ``scheme`` None is ``number_bytes`` each."""

    matrix: Matrix
    number_bytes: int
    scheme: QuantScheme | None = None

    @property
    def codes(self) -> int:
        """Bytes of the numbers themselves in one such matrix."""
        bits = 8 * self.number_bytes if self.scheme is None else self.scheme.bits
        return self.matrix.size * bits // 8

    @property
    def scales(self) -> int:
        """Number of quantisation scales in one matrix."""
        if self.scheme is None:
            return 0
        block = self.scheme.block
        return self.matrix.outputs if block is None else self.matrix.size // block

    @property
    def stored(self) -> int:
        """Bytes of one such matrix in a file, with its scales and zero points."""
        if self.scheme is None:
            return self.codes
        if self.scheme.bits == 8:
            return self.codes + 4 * self.scales
        zeros = 0 if self.scheme.symmetric else self.scales // 2
        return self.codes + self.number_bytes * self.scales + zeros


def llm_weights(model: ModelDimensions, settings: PlanSettings) -> tuple[Weight, ...]:
    """The decoder's linear layers; what AWQ and GPTQ have packed leaves the head in float."""
    return tuple(
        Weight(
            matrix,
            settings.number_bytes,
            _packed_or(settings.scheme(), model, matrix.name),
        )
        for matrix in model.text.matrices()
    )


def prefill_weights(model: ModelDimensions, settings: PlanSettings) -> tuple[Weight, ...]:
    """The decoder once more where the prompt has a graph of its own: blocks in int8."""
    if settings.prefill_quant is None:
        return ()
    *blocks, head = llm_weights(model, settings)
    return (*(Weight(w.matrix, settings.number_bytes, INT8) for w in blocks), head)


def vision_weights(model: ModelDimensions, settings: PlanSettings) -> tuple[Weight, ...]:
    """The tower's linear layers, then what is never quantised."""
    scheme = INT8 if settings.vision_quant else None
    linear = (Weight(m, settings.number_bytes, scheme) for m in model.tower_matrices())
    others = (Weight(m, settings.number_bytes) for m in model.other_vision_matrices())
    return (*linear, *others)


def table_bytes(model: ModelDimensions, settings: PlanSettings) -> int:
    """The embedding table, which stays in its file."""
    return model.text.vocab_size * model.text.hidden_size * settings.number_bytes


def stored_bytes(weights: Iterable[Weight]) -> int:
    """All of them in a file."""
    return sum(weight.stored * weight.matrix.count for weight in weights)


def _packed_or(scheme: QuantScheme | None, model: ModelDimensions, name: str) -> QuantScheme | None:
    if model.packed is None:
        return scheme
    return None if name == "lm_head" else model.packed
