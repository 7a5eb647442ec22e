"""What an export will write: everything that is decided before the first byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from divprune.export.checkpoint.checkpoint import EMBEDDINGS, LM_HEAD, Checkpoint
from divprune.export.checkpoint.source import ModelSource
from divprune.export.checkpoint.weights import WeightSource
from divprune.export.decoder.dialects import Dialect
from divprune.export.decoder.graph import DecoderPart
from divprune.export.decoder.spec import DecoderSpec
from divprune.export.families import Family
from divprune.export.graphs.lanes import Lane
from divprune.export.planning.options import ExportOptions
from divprune.export.planning.signals import Signal
from divprune.export.selection import (
    InLLMSelector,
    Selector,
)
from divprune.export.selection.sizes import TOKENS
from divprune.runtime import families as runtime_families
from divprune.runtime.directory.cuda_support import flags_without_cuda
from divprune.runtime.directory.keep import kept_count
from divprune.runtime.directory.manifest import DimRange

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EVERYDAY_SIZE", "ExportPlan", "example_inputs"]

EVERYDAY_SIZE = (640, 480)


@dataclass(frozen=True, slots=True)
class ExportPlan:
    """One checkpoint, read and checked, with what is to be made of it."""

    options: ExportOptions
    source: ModelSource
    checkpoint: Checkpoint
    family: Family
    facts: Mapping[str, Any]
    tokenizer: Any
    runtime_family: runtime_families.Family
    dims: Mapping[str, DimRange]
    spec: DecoderSpec
    lane: Lane
    dialect: Dialect
    selector: Selector | InLLMSelector
    signals: Mapping[str, Signal]
    weights: WeightSource
    tensor_names: frozenset[str]
    num_image_tokens: int
    num_kept: int
    positions: str
    max_seq_len: int
    max_weight_mib: int | None

    @property
    def varies(self) -> bool:
        """Whether the number of visual tokens depends on the picture."""
        return TOKENS in self.dims

    def count_kept(self, num_image_tokens: int) -> int:
        """K of a picture with N tokens."""
        if num_image_tokens == self.num_image_tokens:
            return self.num_kept
        return kept_count(self.options.keep or 1.0, num_image_tokens)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the pixels, where every picture has the same."""
        height, width = self.family.vision_inputs()[0].shape[-2:]
        return int(height), int(width)

    def example_inputs(self) -> Mapping[str, NDArray[Any]]:
        """The vision graph's inputs for a made-up picture of everyday size."""
        return example_inputs(self.runtime_family)

    @property
    def pre_llm(self) -> Selector | None:
        """The selector, if it works in the vision graph."""
        return None if isinstance(self.selector, InLLMSelector) else self.selector

    @property
    def in_llm(self) -> InLLMSelector | None:
        """The selector, if it works between decoder layers."""
        return self.selector if isinstance(self.selector, InLLMSelector) else None

    @property
    def num_fed(self) -> int:
        """Visual tokens of a picture that enter the LLM where it is pruned."""
        return self.num_kept if self.in_llm is None else self.num_image_tokens

    def decoder_parts(self) -> tuple[DecoderPart, ...]:
        """The LLM graphs: one, or front and back of a selection between them.

        The back never holds the tokens that are pruned, unless the baseline keeps them all, or a
        picture may have so few that there is hardly anything to prune.
        """
        layers = range(self.spec.num_layers)
        if (selector := self.in_llm) is None:
            return (DecoderPart("llm", layers, self.max_seq_len),)
        whole = self.options.baseline or self.varies
        removed = 0 if whole else self.num_image_tokens - self.num_kept
        needs_query = "last_query" in selector.inputs
        return (
            DecoderPart("llm_front", layers[: selector.layer], self.max_seq_len, needs_query),
            DecoderPart("llm_back", layers[selector.layer :], self.max_seq_len - removed),
        )

    @property
    def prefill_part(self) -> DecoderPart | None:
        """A second graph of the decoder for the rows of a prompt, if one was asked for."""
        if self.options.prefill_quant is None:
            return None
        layers = range(self.spec.num_layers)
        return DecoderPart("llm_prefill", layers, self.max_seq_len)

    @property
    def runs_on_cuda(self) -> bool:
        """Whether ONNX Runtime will have CUDA kernels for all of it, as the manifest says it."""
        scheme = self.options.quant_scheme()
        return not flags_without_cuda(
            dialect=self.dialect.name,
            dtype=self.options.dtype,
            bits=None if scheme is None else scheme.bits,
            vision_quant=self.options.vision_quant,
            prefill_quant=self.options.prefill_quant,
        )

    @property
    def decode_part(self) -> DecoderPart | None:
        """The decoder once more with its lengths as inputs, where CUDA can record its steps.

        There is none where a selector works inside the LLM: its halves are two sessions.
        """
        if self.dialect.for_recording() is None or self.in_llm or not self.runs_on_cuda:
            return None
        return DecoderPart("llm_decode", range(self.spec.num_layers), self.max_seq_len)

    def dialect_of(self, part: DecoderPart) -> Dialect:
        """How a decoder graph is spelled."""
        recorded = self.dialect.for_recording() if part.name == "llm_decode" else None
        return recorded or self.dialect

    def weights_of(self, part: DecoderPart) -> WeightSource:
        """The weights as a decoder graph stores them."""
        return self.weights.in_int8() if part.name == "llm_prefill" else self.weights

    def estimated_bytes(self) -> int:
        """Upper bound of what the export writes: every tensor, and a tied table once more.

        The table on the host stays in ``dtype``, whatever the decoder's matrices are stored as.
        """
        table = self.weights.size(EMBEDDINGS) * self.weights.dtype.itemsize
        others = sum(self.weights.stored_bytes(n) for n in self.tensor_names if n != EMBEDDINGS)
        tied = self.weights.stored_bytes(EMBEDDINGS) if self.spec.tied_head else 0
        again = 0
        if self.prefill_part is not None:
            decoder = ("language_model.layers.", LM_HEAD)
            names = (n for n in self.tensor_names if n.startswith(decoder))
            again = sum(map(self.weights.in_int8().stored_bytes, names)) + tied
        return int(table + others + tied + again) + 64 * 2**20


def example_inputs(family: runtime_families.Family) -> Mapping[str, NDArray[Any]]:
    """The vision graph's inputs for a made-up picture of everyday size."""
    width, height = EVERYDAY_SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return family.prepare_image(Image.fromarray(noise)).inputs
